"""Everything wrong with a run's parameters and source, at once."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import InputError
from stillhouse.inspection import inspect_run
from stillhouse.pipelines.parameters import arguments_for

SCRATCH = "scratch://bert?num_hidden_layers=1&hidden_size=16&num_attention_heads=2&intermediate_size=16"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows = [f"text number {i},{'good' if i % 2 else 'bad'}" for i in range(60)]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


def parameters(source: Path, **changes: Any) -> dict[str, Any]:
    values, problems = arguments_for("tiny", [f"data={source}", f"teacher={SCRATCH}"])
    assert problems == []
    return {**values, "tracking_uri": f"sqlite:///{source.parent}/mlflow.db", **changes}


def test_a_sound_run_gets_a_fingerprint_and_versions(source: Path):
    found = inspect_run(parameters(source))
    assert found.fingerprint
    assert set(found.versions) == {"prepare_data", "train", "package", "evaluate"}
    assert inspect_run(parameters(source)).fingerprint == found.fingerprint
    source.write_text(source.read_text() + "one more,good\n", encoding="utf-8")
    assert inspect_run(parameters(source)).fingerprint != found.fingerprint


def test_every_parameter_that_will_not_do_is_named(source: Path):
    wrong = {
        "max_train_rows": -1, "validation_fraction": 2.0, "teacher": "/nowhere", "albert": "hub://a/b/c",
        "teacher_epochs": 0.0, "student_learning_rate": 7.0, "albert_embedding_size": 0, "batch_size": 0,
        "distill_layers": "x", "distill_temperature": 0.0, "precisions": "int4", "max_text_bytes": 0,
        "policy": "best", "min_retention": 0.0, "quality_metric": "bleu", "model_name": "a/b", "deploy_target": "moon",
        "tracking_uri": "ftp://x",
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(source, **wrong))
    assert {problem.where for problem in caught.value.problems} == set(wrong)
    assert all(problem.what for problem in caught.value.problems)
    # Each is said once, although several steps share it.
    assert len(caught.value.problems) == len({str(p) for p in caught.value.problems})


def test_parameters_and_source_are_reported_together(source: Path):
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(source, text_column="txt", policy="best"))
    text = str(caught.value)
    assert "txt" in text
    assert "policy" in text


def test_an_unknown_task_does_not_hide_the_rest(source: Path):
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(source, task="juggling", policy="best"))
    assert {"task", "policy"} <= {problem.where for problem in caught.value.problems}
