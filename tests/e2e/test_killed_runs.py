"""A run that is killed, once politely and once not, and the one that continues it."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_runs import Home, Run, write_reviews

pytestmark = pytest.mark.slow


def test_a_run_that_was_killed_twice_continues_where_it_was(make_home: Callable[[str], Home], tmp_path: Path):
    home = make_home("killed")
    settings = {
        "data": write_reviews(tmp_path / "reviews.csv", 700), "text_column": "review", "label_column": "verdict",
        "max_train_rows": 500, "teacher_epochs": 1, "albert_epochs": 1, "student_epochs": 15,
        "early_stopping_patience": 0, "precisions": "fp32", "bootstrap_samples": 200, "latency_samples": 20,
    }  # fmt: skip

    def newest_checkpoint() -> int:
        marks = home.folder.glob("checkpoints/student-*/checkpoint-*/whole")
        return max((int(path.parent.name.rpartition("-")[2]) for path in marks), default=0)

    reached = 0
    for kill in (signal.SIGTERM, signal.SIGKILL):
        known = set(home.runs())
        process = home.start("tiny", **settings)
        deadline = time.monotonic() + 300
        while newest_checkpoint() <= reached:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint came"
            time.sleep(0.05)
        process.send_signal(kill)
        assert process.wait(timeout=60) == (128 + kill if kill == signal.SIGTERM else -kill)
        (folder,) = set(home.runs()) - known
        killed = Run(1, "", "", folder)
        assert "distill-student" in killed.steps("started") - killed.steps("finished")
        if reached:
            assert first_progress(killed) >= reached, "the student started over"
        reached = newest_checkpoint()

    again = home.run("tiny", **settings)
    assert again.returncode == 0, again.stderr
    assert again.steps("cached") >= {"prepare-data", "finetune-teacher"}
    assert first_progress(again) >= reached, "the student started over"


def first_progress(run: Run) -> int:
    """The first step of the student's training that a run reported."""
    return next(e["done"] for e in run.events() if e["step"] == "distill-student" and e["event"] == "progress")
