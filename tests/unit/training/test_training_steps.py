"""Fine-tuning and distillation on a task small enough to learn in seconds, and resuming after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillhouse.artifacts import DatasetManifest, ModelManifest
from stillhouse.errors import InputError
from stillhouse.training import DistillationSettings, DistillConfig, FinetuneConfig, steps

pytestmark = pytest.mark.slow

SCRATCH = "scratch://bert?num_hidden_layers=2&hidden_size=32&num_attention_heads=2&intermediate_size=64&vocab_size=200"


def finetune_config(**changes: object) -> FinetuneConfig:
    values = {"name": "teacher", "checkpoint": SCRATCH, "epochs": 4, "learning_rate": 2e-3, "max_length": 16,
              "evaluations_per_epoch": 1, "early_stopping_patience": 0}  # fmt: skip
    return FinetuneConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def teacher(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "teacher"
    steps.finetune(finetune_config(), dataset_dir=dataset, output_dir=output)
    return output


def test_a_teacher_learns_and_leaves_a_whole_artifact(teacher: Path, dataset: Path):
    manifest = ModelManifest.load(teacher)
    manifest.verify(teacher)
    assert manifest.metrics["accuracy"] >= 0.95
    assert (manifest.family, manifest.recipe, manifest.label_names) == ("bert", "from scratch", ["bad", "good"])
    assert manifest.inputs == {"dataset": DatasetManifest.digest(dataset)}
    names = {path.name for path in teacher.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "model.json", "history.json"} <= names
    # Nothing pickled leaves the training folder, and no checkpoint with optimizer state does.
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl")) or n.startswith("checkpoint")]
    assert any("eval_accuracy" in entry for entry in json.loads((teacher / "history.json").read_text()))


def test_a_student_follows_the_teacher(teacher: Path, dataset: Path, tmp_path: Path):
    config = DistillConfig(name="student", epochs=3, learning_rate=2e-3, max_length=16, evaluations_per_epoch=1)
    manifest = steps.distill(config, dataset_dir=dataset, teacher_dir=teacher, output_dir=tmp_path / "student")
    assert manifest.metrics["accuracy"] >= 0.95
    assert (manifest.family, manifest.recipe) == ("distilbert", "distilled")
    assert manifest.hyperparameters["layers"] == [2]
    assert manifest.inputs["teacher"] == ModelManifest.digest(teacher)
    assert manifest.parameters < ModelManifest.load(teacher).parameters


def test_an_albert_made_from_the_teacher_recovers(teacher: Path, dataset: Path, tmp_path: Path):
    config = finetune_config(
        name="albert", checkpoint="teacher://", embedding_size=8, layers=1, distillation=DistillationSettings()
    )
    manifest = steps.finetune(config, dataset_dir=dataset, output_dir=tmp_path / "albert", teacher_dir=teacher)
    assert manifest.metrics["accuracy"] >= 0.95
    assert (manifest.family, manifest.recipe) == ("albert", "factorised from the teacher")
    assert 0 < manifest.hyperparameters["embedding_energy"] < 1


def test_the_soft_term_alone_teaches(teacher: Path, dataset: Path, tmp_path: Path):
    # Without labels in the loss, only the teacher can be the source of what the student knows.
    settings = DistillationSettings(hard=0, soft=1, cosine=0)
    config = DistillConfig(
        name="student", epochs=3, learning_rate=2e-3, max_length=16, evaluations_per_epoch=1, distillation=settings
    )
    manifest = steps.distill(config, dataset_dir=dataset, teacher_dir=teacher, output_dir=tmp_path / "student")
    assert manifest.metrics["accuracy"] >= 0.9


def test_equal_seeds_give_equal_weights(dataset: Path, tmp_path: Path):
    digests = set()
    for run in ("a", "b"):
        steps.finetune(finetune_config(epochs=0.5), dataset_dir=dataset, output_dir=tmp_path / run)
        digests.add(ModelManifest.load(tmp_path / run).files["model.safetensors"])
    steps.finetune(finetune_config(epochs=0.5, seed=7), dataset_dir=dataset, output_dir=tmp_path / "c")
    assert len(digests) == 1
    assert ModelManifest.load(tmp_path / "c").files["model.safetensors"] not in digests


def test_all_wrong_settings_are_reported_at_once(dataset: Path, tmp_path: Path):
    config = finetune_config(checkpoint="/nowhere", epochs=0, learning_rate=-1, warmup_ratio=2, precision="fp8")
    with pytest.raises(InputError) as caught:
        steps.finetune(config, dataset_dir=dataset, output_dir=tmp_path / "x")
    where = {problem.where for problem in caught.value.problems}
    assert where == {"teacher", "teacher_epochs", "teacher_learning_rate", "warmup_ratio", "precision"}
    assert not (tmp_path / "x").exists()


def test_texts_longer_than_the_models_positions_are_refused(dataset: Path, tmp_path: Path):
    config = finetune_config(checkpoint=SCRATCH + "&max_position_embeddings=12")
    with pytest.raises(InputError, match="max_length"):
        steps.finetune(config, dataset_dir=dataset, output_dir=tmp_path / "x")


@pytest.mark.parametrize("on_a_cluster", [True, False])
def test_checkpoints_outlive_a_training_whose_model_is_uploaded_after_it(
    on_a_cluster: bool, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    if on_a_cluster:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    caplog.set_level("INFO", "stillhouse")
    made = []
    for attempt in ("first", "second"):
        config = finetune_config(epochs=0.5, checkpoint_dir=f"file://{tmp_path}/checkpoints")
        steps.finetune(config, dataset_dir=dataset, output_dir=tmp_path / attempt)
        made.append(ModelManifest.load(tmp_path / attempt))
    assert made[0].files["model.safetensors"] == made[1].files["model.safetensors"]
    assert made[0].metrics == made[1].metrics
    assert ("continuing from" in caplog.text) is on_a_cluster
    assert bool(list(tmp_path.glob("checkpoints/*/checkpoint-*"))) is on_a_cluster


TRAIN = """
import logging
import sys
from pathlib import Path
from stillhouse.training import FinetuneConfig, steps
logging.basicConfig(level=logging.INFO)
checkpoint, dataset, output, checkpoints = sys.argv[1:]
steps.finetune(
    FinetuneConfig(name="teacher", checkpoint=checkpoint, epochs=30, learning_rate=1e-3, max_length=16,
                   evaluations_per_epoch=1, early_stopping_patience=0, checkpoint_dir=checkpoints),
    dataset_dir=Path(dataset), output_dir=Path(output))
"""


def test_a_killed_training_continues_from_its_last_checkpoint(dataset: Path, tmp_path: Path):
    command = [sys.executable, "-c", TRAIN, SCRATCH, str(dataset), str(tmp_path / "out"), str(tmp_path / "checkpoints")]
    log = (tmp_path / "log").open("w")
    first = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("checkpoints/*/checkpoint-*/whole"))) < 2:
        assert first.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "out" / "model.json").exists()
    reached = max(int(p.name.split("-")[1]) for p in tmp_path.glob("checkpoints/*/checkpoint-*"))

    done = subprocess.run(command, capture_output=True, text=True, check=True)
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert ModelManifest.load(tmp_path / "out").metrics["accuracy"] >= 0.95
    # The newest checkpoint may have been cut off by the kill; then the one before it is taken.
    resumed = re.search(r"continuing from .*checkpoint-(\d+)", done.stderr)
    assert resumed is not None
    assert 16 <= reached - 16 <= int(resumed[1]) <= reached
    first_epoch = float(re.search(r"'epoch': '([0-9.]+)'", done.stdout)[1])
    assert first_epoch > int(resumed[1]) / 16
    assert max(entry["step"] for entry in history) == 30 * 16
    # Once the model is written, its checkpoints are gone.
    assert not list(tmp_path.glob("checkpoints/*/checkpoint-*"))
