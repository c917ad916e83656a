"""Everything wrong with the extra candidates, at once."""

from pathlib import Path
from typing import Any

import pytest
from family_checkpoints import POSITIONS, write_checkpoint

from stillhouse.data.demo import reviews
from stillhouse.errors import InputError
from stillhouse.inspection import inspect_run
from stillhouse.inspection.inspect import run_digest
from stillhouse.pipelines.parameters import arguments_for

SMALL = "scratch://bert?num_hidden_layers=1&hidden_size=16&num_attention_heads=2&intermediate_size=16"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    texts = [text for text, _ in reviews(60, seed=3)]
    for family in ("roberta", "xlnet"):
        write_checkpoint(root / family, family, texts)
    return root


def parameters(folder: Path, **changes: Any) -> dict[str, Any]:
    values, problems = arguments_for("tiny", [f"teacher={SMALL}"])
    assert problems == []
    return {**values, "tracking_uri": f"sqlite:///{folder}/mlflow.db", "max_length": POSITIONS, **changes}


def test_sound_candidates_get_names(checkpoints: Path, tmp_path: Path):
    assert inspect_run(parameters(tmp_path)).candidates == []
    items = [f"{checkpoints}/roberta", f"other={checkpoints}/roberta", f"{checkpoints}/xlnet", "minilm://", SMALL]
    assert inspect_run(parameters(tmp_path, extra_candidates=items)).candidates == [
        f"roberta={checkpoints}/roberta", f"other={checkpoints}/roberta", f"xlnet={checkpoints}/xlnet",
        "minilm=minilm://", f"bert={SMALL}",
    ]  # fmt: skip


def test_every_problem_of_every_candidate_is_told_at_once(checkpoints: Path, tmp_path: Path):
    items = [
        f"{checkpoints}/roberta", f"roberta={checkpoints}/xlnet", "albert=minilm://", 3, "x=teacher://", "a=/nowhere",
        "b=hub://a/b/c", "c=scratch://bert?hidden_sise=2",
    ]  # fmt: skip
    wrong = {"extra_epochs": 0.0, "extra_learning_rate": 7.0, "max_length": POSITIONS + 1, "policy": "best"}
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(tmp_path, extra_candidates=items, **wrong))
    found = caught.value.problems
    assert {problem.where for problem in found} == {*wrong, "extra_candidates"}
    said = "\n".join(problem.what for problem in found if problem.where == "extra_candidates")
    for part in ("both be called 'roberta'", "'albert'", "3 is not text", "made from the teacher", "'/nowhere'",
                 "'hub://a/b/c'", "hidden_sise"):  # fmt: skip
        assert said.count(part) == 1, part
    (long,) = [problem for problem in found if problem.where == "max_length"]
    assert f"exceeds the {POSITIONS} positions of '{checkpoints}/roberta'" in long.what


def test_settings_of_their_training_are_checked_where_there_are_none(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(tmp_path, extra_epochs=-1.0))
    assert [problem.where for problem in caught.value.problems] == ["extra_epochs"]


def test_they_shape_what_a_run_makes(tmp_path: Path):
    values = parameters(tmp_path)
    digest = run_digest(values, "f", {"train": "1"})
    for change in ({"extra_candidates": ["minilm://"]}, {"extra_epochs": 1.0}, {"extra_learning_rate": 1e-4}):
        assert run_digest({**values, **change}, "f", {"train": "1"}) != digest, change
