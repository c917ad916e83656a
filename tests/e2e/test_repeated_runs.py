"""A run with extra candidates, one of which cannot be served; the same again; and again with a changed source."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from family_checkpoints import POSITIONS, write_checkpoint
from local_runs import CACHED_STEPS, UNCACHED_STEPS, Home, Run, write_reviews

from stillhouse.data.demo import reviews
from stillhouse.registry import MlflowRegistry

pytestmark = pytest.mark.slow

EXTRA_STEPS = {"finetune-roberta", "package-roberta", "finetune-odd", "package-odd"}


@pytest.fixture(scope="module")
def home(make_home: Callable[[str], Home]) -> Home:
    return make_home("repeated")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("repeated-input")
    texts = [text for text, _ in reviews(100, seed=3)]
    for family in ("roberta", "xlnet"):
        write_checkpoint(folder / family, family, texts)
    small = "num_hidden_layers=1&hidden_size=16&num_attention_heads=2&intermediate_size=16&vocab_size=300"
    return {
        "data": write_reviews(folder / "reviews.csv", 400), "text_column": "review", "label_column": "verdict",
        "extra_candidates": json.dumps([f"{folder}/roberta", f"odd={folder}/xlnet"]), "extra_epochs": 0.5,
        "teacher": f"scratch://bert?{small}", "albert": f"scratch://albert?{small}&embedding_size=8",
        "distill_layers": "1", "teacher_epochs": 0.2, "student_epochs": 0.2, "albert_epochs": 0.2,
        "max_length": POSITIONS, "precisions": "fp32", "bootstrap_samples": 200, "latency_samples": 20,
    }  # fmt: skip


@pytest.fixture(scope="module")
def first(home: Home, settings: dict[str, Any]) -> Run:
    run = home.run("tiny", **settings)
    assert run.returncode == 0, run.stderr + run.stdout
    return run


def test_each_extra_candidate_is_fine_tuned_packaged_and_measured(first: Run):
    assert first.steps("finished") == CACHED_STEPS | UNCACHED_STEPS | EXTRA_STEPS
    evaluation = first.evaluation()
    assert [c["name"] for c in evaluation["candidates"]] == ["teacher", "student", "albert", "roberta"]
    roberta = evaluation["candidates"][-1]
    assert (roberta["family"], roberta["precision"]) == ("roberta", "fp32")
    assert roberta["latency_ms"]["p95"] > 0 and roberta["parity"]["max_difference"] < 1e-3
    (odd,) = evaluation["unservable"]
    assert (odd["name"], odd["family"]) == ("odd", "xlnet")
    assert "xlnet models cannot be packaged" in odd["reason"]
    assert evaluation["choice"]["name"] != "odd"
    for text in ("roberta", "odd cannot be served: xlnet models cannot be packaged"):
        assert text in first.stdout, text
    assert odd["reason"] in (Path(first.result("register")["evaluation_dir"]) / "report.html").read_text()


def test_the_report_command_shows_them_and_the_registry_keeps_their_lineage(first: Run, home: Home):
    report = home.stillhouse("report")
    assert "odd cannot be served" in report.stdout and "roberta" in report.stdout
    tags = MlflowRegistry(f"sqlite:///{home.folder}/mlflow.db").tags("tiny", "1")
    assert {f"model_digest.{name}" for name in ("teacher", "student", "albert", "roberta", "odd")} <= set(tags)


def test_an_equal_run_finds_every_turn_of_the_loop_in_the_cache(first: Run, home: Home, settings: dict[str, Any]):
    os.utime(settings["data"])  # touched, not changed
    again = home.run("tiny", **settings)
    assert again.returncode == 0, again.stderr
    assert again.steps("started") == UNCACHED_STEPS
    assert again.steps("cached") == CACHED_STEPS | EXTRA_STEPS


def test_without_one_of_them_or_by_another_policy_only_the_comparison_is_made_anew(
    first: Run, home: Home, settings: dict[str, Any]
):
    _, odd = json.loads(settings["extra_candidates"])
    run = home.run("tiny", **{**settings, "extra_candidates": json.dumps([odd]), "policy": "memory"})
    assert run.returncode == 0, run.stderr
    assert run.steps("started") == {*UNCACHED_STEPS, "evaluate"}
    assert run.steps("cached") == (CACHED_STEPS | {"finetune-odd", "package-odd"}) - {"evaluate"}


def test_changed_parameters_execute_just_what_depends_on_them(first: Run, home: Home, settings: dict[str, Any]):
    run = home.run("tiny", **{**settings, "student_epochs": 0.1})
    assert run.returncode == 0, run.stderr
    assert run.steps("started") == {*UNCACHED_STEPS, "distill-student", "package-student", "evaluate"}


def test_a_changed_source_is_read_again(first: Run, home: Home, settings: dict[str, Any]):
    with settings["data"].open("a", encoding="utf-8") as file:
        file.write("Simply the best evening of the year.,positive\n")
    known = set(home.runs())
    process = home.start("tiny", **{**settings, "extra_candidates": "[]"})
    deadline = time.monotonic() + 300
    # All that follows depends on this step or on the dataset, and takes minutes.
    while not any('"step": "package-teacher", "event": "started"' in text for text in new_events(home, known)):
        assert process.poll() is None and time.monotonic() < deadline, new_events(home, known)
        time.sleep(0.5)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    (folder,) = set(home.runs()) - known
    run = Run(0, "", "", folder)
    assert run.steps("started") >= {"inspect-source", "prepare-data", "finetune-teacher", "package-teacher"}
    assert run.steps("cached") <= {"fetch-champion"}  # there is still none


def new_events(home: Home, known: set[Path]) -> list[str]:
    """The events of each run that is not known, as far as they are written."""
    return [path.read_text() for folder in set(home.runs()) - known for path in folder.glob("events.jsonl")]
