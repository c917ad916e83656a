"""Two processes pretrain one model as one process would with their batches put together."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import SCRATCH
from transformers import BertModel

from stillhouse.artifacts import ModelManifest
from stillhouse.pretraining import PretrainConfig, pretrain

TRAIN = """
import json
import os
import sys
from pathlib import Path
from stillhouse.pretraining import PretrainConfig, pretrain
from stillhouse.progress import Step
from stillhouse.training import ranks

class Killed(Step):
    def progress(self, done, total, note=""):
        if done == int(kill):
            os._exit(9)

config, corpus, output, kill = sys.argv[1:]
ranks.join()
step = Killed("pretrain") if ranks.is_main() else None
pretrain(PretrainConfig(**json.loads(config)), corpus_dir=Path(corpus), output_dir=Path(output), step=step)
ranks.leave()
"""


def together(settings: dict[str, Any], corpus: Path, output: Path, kill: int = -1) -> subprocess.CompletedProcess[str]:
    script = output.parent / "train.py"
    script.write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run(
        [*command, json.dumps(settings), str(corpus), str(output), str(kill)], capture_output=True, text=True,
        timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def assert_same_history(one: Path, other: Path) -> None:
    expected, found = (json.loads((folder / "history.json").read_text()) for folder in (one, other))
    assert len(expected) > 5
    assert [entry.keys() for entry in found] == [entry.keys() for entry in expected]
    for before, after in zip(expected, found, strict=True):
        assert after == pytest.approx(before, rel=2e-3, abs=1e-5)
    assert ModelManifest.load(other).metrics == pytest.approx(ModelManifest.load(one).metrics, rel=2e-3)


@pytest.mark.slow
def test_two_processes_killed_and_continued_make_the_steps_of_one(corpus: Path, tmp_path: Path):
    settings: dict[str, Any] = {
        "model": SCRATCH, "sequence_length": 24, "steps": 20, "evaluations": 4, "learning_rate": 2e-3,
        "precision": "fp32",
    }  # fmt: skip
    pretrain(PretrainConfig(**settings, batch_size=16), corpus_dir=corpus, output_dir=tmp_path / "one")
    settings |= {"batch_size": 4, "gradient_accumulation_steps": 2, "checkpoint_dir": str(tmp_path / "checkpoints")}
    first = together(settings, corpus, tmp_path / "two", kill=13)
    assert first.returncode
    assert not (tmp_path / "two").exists()
    second = together(settings, corpus, tmp_path / "two")
    assert second.returncode == 0, second.stderr
    assert_same_history(tmp_path / "one", tmp_path / "two")
    ModelManifest.load(tmp_path / "two").verify(tmp_path / "two")
    assert ModelManifest.load(tmp_path / "two").hyperparameters["processes"] == 2
    assert not list(tmp_path.glob("checkpoints/*/checkpoint-*"))


@pytest.mark.slow
def test_two_processes_fit_a_head_and_distil_as_one_does(corpus: Path, tmp_path: Path):
    bert, teacher = tmp_path / "bert", tmp_path / "teacher"
    pretrain(PretrainConfig(model=SCRATCH, steps=5, sequence_length=24), corpus_dir=corpus, output_dir=bert)
    BertModel.from_pretrained(bert).save_pretrained(teacher)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, teacher)
    settings: dict[str, Any] = {
        "model": "teacher://", "teacher": str(teacher), "objective": "triple", "sequence_length": 24, "steps": 10,
        "head_steps": 10, "evaluations": 2, "learning_rate": 2e-3, "precision": "fp32",
    }  # fmt: skip
    pretrain(PretrainConfig(**settings, batch_size=16), corpus_dir=corpus, output_dir=tmp_path / "one")
    done = together({**settings, "batch_size": 8}, corpus, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert_same_history(tmp_path / "one", tmp_path / "two")
    perplexities = [
        ModelManifest.load(tmp_path / name).hyperparameters["teacher_perplexity"] for name in ("one", "two")
    ]
    assert perplexities[1] == pytest.approx(perplexities[0], rel=2e-3)
