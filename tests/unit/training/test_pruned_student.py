"""A student that is pruned after its distillation, and recovers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.artifacts import DatasetManifest, ModelManifest
from stillhouse.errors import InputError
from stillhouse.models import checkpoints
from stillhouse.models.units import encoder_matrices
from stillhouse.progress import Step
from stillhouse.training import DistillConfig, FinetuneConfig, PruneSettings, launch, pruning, steps
from stillhouse.training.pruning import cubic_sparsity, magnitude_mask
from stillhouse.training.staging import Work

pytestmark = pytest.mark.slow

SCRATCH = "scratch://bert?num_hidden_layers=2&hidden_size=32&num_attention_heads=4&intermediate_size=64&vocab_size=200"
STEPS_PER_EPOCH = 16  # 512 rows in batches of 32


@pytest.fixture(scope="module")
def teacher(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "teacher"
    config = FinetuneConfig(
        name="teacher", checkpoint=SCRATCH, epochs=4, learning_rate=2e-3, max_length=16, evaluations_per_epoch=1
    )
    steps.finetune(config, dataset_dir=dataset, output_dir=output)
    return output


def config(checkpoint_dir: Path | str = "", **asked: float) -> DistillConfig:
    return DistillConfig(
        name="student", epochs=2, learning_rate=2e-3, max_length=16, evaluations_per_epoch=2,
        early_stopping_patience=0, checkpoint_dir=str(checkpoint_dir), pruning=PruneSettings(**asked),
    )  # fmt: skip


def load(folder: Path) -> torch.nn.Module:
    reference = checkpoints.reference_for(folder)
    return checkpoints.load_model(reference, "student", "AutoModelForSequenceClassification", {})


def test_the_schedule_is_cubic():
    # 0.8 * (1 - (1 - t/8)^3) by hand.
    found = [cubic_sparsity(step, 0.8, end=8) for step in (0, 2, 4, 8, 9)]
    assert found == pytest.approx([0.0, 0.8 * (1 - 27 / 64), 0.8 * (1 - 1 / 8), 0.8, 0.8])
    later = [cubic_sparsity(step, 0.5, begin=10, end=20, initial=0.1) for step in (3, 10, 15, 20)]
    assert later == pytest.approx([0.1, 0.1, 0.5 - 0.4 / 8, 0.5])


def test_the_smallest_weights_go():
    weights = torch.tensor([[0.1, -3.0, 0.0], [-0.2, 2.0, 1.0]])
    assert magnitude_mask(weights, 0.5).tolist() == [[False, True, False], [False, True, True]]
    assert magnitude_mask(weights, 0.49).tolist() == [[False, True, False], [True, True, True]]
    assert magnitude_mask(weights, 0.0).all()
    # Zeros are the smallest there is, so a growing mask keeps what it has.
    masked = weights * magnitude_mask(weights, 0.5)
    assert not (magnitude_mask(masked, 0.7) & (masked == 0)).any()


def test_a_student_pruned_of_heads_and_neurons_recovers(teacher: Path, dataset: Path, tmp_path: Path):
    manifest = steps.distill(
        config(heads=0.5, ffn=0.75), dataset_dir=dataset, teacher_dir=teacher, output_dir=tmp_path / "student"
    )
    manifest.verify(tmp_path / "student")
    facts = manifest.hyperparameters
    # One layer of 4 heads and 64 neurons: 3 x (32 x 8 + 8) + 8 x 32 and 2 x 32 + 1 parameters each.
    assert (facts["heads"], facts["neurons"], facts["sparsity"]) == ([2], [16], 0.0)
    assert manifest.parameters == facts["dense_parameters"] - 2 * 1048 - 48 * 65
    assert manifest.metrics["accuracy"] >= 0.95 and facts["dense_metrics"]["accuracy"] >= 0.95
    assert facts["pruning"] == {"heads": 0.5, "ffn": 0.75, "sparsity": 0.0, "epochs": 1.0}
    assert (manifest.producer, manifest.family) == ("distill", "distilbert")
    student = load(tmp_path / "student")
    assert student.config.stillhouse["heads"] == [2]
    assert student.distilbert.transformer.layer[0].ffn.lin1.weight.shape == (16, 32)
    assert checkpoints.parameter_count(student) == manifest.parameters
    history = json.loads((tmp_path / "student" / "history.json").read_text())
    phases = [entry.get("phase", "dense") for entry in history]
    assert phases == sorted(phases) and set(phases) == {"dense", "recovery"}
    recovered = [entry["step"] for entry in history if "phase" in entry]
    assert min(recovered) > 2 * STEPS_PER_EPOCH and max(recovered) == 3 * STEPS_PER_EPOCH


def test_a_sparse_student_ends_as_sparse_as_asked(teacher: Path, dataset: Path, tmp_path: Path):
    manifest = steps.distill(
        config(sparsity=0.7, epochs=2), dataset_dir=dataset, teacher_dir=teacher, output_dir=tmp_path / "student"
    )
    assert 0.699 <= manifest.hyperparameters["sparsity"] <= 0.705
    assert manifest.metrics["accuracy"] >= 0.9
    student = load(tmp_path / "student")
    shares = {name: float((m == 0).float().mean()) for name, m in encoder_matrices(student).items()}
    assert len(shares) == 6 and all(0.699 <= share <= 0.705 for share in shares.values()), shares
    assert (student.distilbert.embeddings.word_embeddings.weight == 0).float().mean() < 0.01
    # The best checkpoint is one of those that are as sparse: before, there is no evaluation that it could have won.
    history = json.loads((tmp_path / "student" / "history.json").read_text())
    evaluated = [e["step"] for e in history if e.get("phase") and "eval_accuracy" in e]
    assert min(evaluated) >= 2 * STEPS_PER_EPOCH + int(0.6 * 2 * STEPS_PER_EPOCH)
    assert manifest.parameters == manifest.hyperparameters["dense_parameters"]


def test_an_albert_that_shares_its_ffn_is_pruned_and_stays_tied(teacher: Path, dataset: Path, tmp_path: Path):
    asked = dataclasses.replace(
        config(heads=0.5, ffn=0.5, sparsity=0.3), student="teacher://albert?layer_sharing=ffn", albert_embedding_size=16
    )
    manifest = steps.distill(asked, dataset_dir=dataset, teacher_dir=teacher, output_dir=tmp_path / "student")
    facts = manifest.hyperparameters
    # Two layers: eight heads, of which four stay, and one FFN of 64 neurons for both.
    assert (sum(facts["heads"]), facts["neurons"]) == (4, [32, 32])
    assert 0.299 <= facts["sparsity"] <= 0.31
    student = load(tmp_path / "student")
    first, second = (group.albert_layers[0] for group in student.albert.encoder.albert_layer_groups)
    assert first.ffn.weight is second.ffn.weight and first.ffn.weight.shape == (32, 32)
    assert first.attention.query.weight is not second.attention.query.weight
    assert student.config.stillhouse["layer_sharing"] == "ffn"
    assert manifest.parameters == facts["dense_parameters"] - 4 * 1048 - 32 * 65


class Cut(Exception):
    """The machine went away."""


class Interrupted(Step):
    """Ends the run after a number of steps of the second training."""

    def __init__(self, after: int) -> None:
        super().__init__("distill-student")
        self._left, self._trainings = after, 0

    def progress(self, done: int, total: int, note: str = "") -> None:
        self._trainings += done == 1
        if self._trainings == 2 and done > self._left:
            raise Cut


def test_a_recovery_that_was_cut_off_continues_with_its_sizes_and_zeros(
    teacher: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    asked = dict(heads=0.25, ffn=0.5, sparsity=0.6, epochs=2)
    inputs = dict(dataset_dir=dataset, teacher_dir=teacher)
    whole = steps.distill(config(**asked), output_dir=tmp_path / "whole", **inputs)
    interrupted = config(tmp_path / "checkpoints", **asked)
    # The ramp ends at 19 of 32 steps; there is a checkpoint at every 8, and one after the ramp.
    with pytest.raises(Cut):
        steps.distill(interrupted, output_dir=tmp_path / "cut", step=Interrupted(25), **inputs)
    (kept,) = tmp_path.glob("checkpoints/*-recovery/checkpoint-24")
    zeros = {name: tensor == 0 for name, tensor in load_file(kept / "model.safetensors").items() if "layer.0" in name}
    assert json.loads((kept / "config.json").read_text())["stillhouse"]["heads"] == [3]
    monkeypatch.setattr(pruning, "importance", lambda *arguments: pytest.fail("the sizes were chosen anew"))
    caplog.set_level("INFO", "stillhouse")
    resumed = steps.distill(interrupted, output_dir=tmp_path / "resumed", **inputs)
    assert "recovery/checkpoint-24" in caplog.text
    weights = load_file(tmp_path / "resumed" / "model.safetensors")
    for name, mask in zeros.items():
        if name.endswith("weight") and mask.ndim == 2:
            assert mask.float().mean() > 0.55 and (weights[name][mask] == 0).all(), name
    # Not only of the same kind: the very steps, and the very student that would have come of them.
    losses = [
        [entry["loss"] for entry in json.loads((tmp_path / name / "history.json").read_text()) if "loss" in entry]
        for name in ("whole", "resumed")
    ]
    assert len(losses[0]) == 64 and losses[0] == losses[1]
    assert resumed.files["model.safetensors"] == whole.files["model.safetensors"]
    assert resumed.metrics == whole.metrics and resumed.hyperparameters == whole.hyperparameters
    assert not list(tmp_path.glob("checkpoints/*/checkpoint-*"))


def test_shares_that_will_not_do_are_all_named(teacher: Path, dataset: Path, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        steps.distill(
            config(heads=1.0, ffn=-0.1, sparsity=float("nan"), epochs=0.0), dataset_dir=dataset, teacher_dir=teacher,
            output_dir=tmp_path / "x",
        )  # fmt: skip
    where = {problem.where for problem in caught.value.problems}
    assert where == {"student_prune_heads", "student_prune_ffn", "student_sparsity", "prune_epochs"}


def test_two_processes_prune_the_same_and_recover_together(
    teacher: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = config(tmp_path / "checkpoints", heads=0.5, ffn=0.5, sparsity=0.5)
    inputs = {"dataset": dataset, "teacher": teacher}
    digests = {"dataset": DatasetManifest.digest(dataset), "teacher": ModelManifest.digest(teacher)}
    work = Work(config=asked, step="distill-student", nodes=1, processes=2, inputs=digests)
    assert Work.from_json(json.loads(json.dumps(work.to_json()))) == work
    manifest = launch._train_here(work, inputs=inputs, output_dir=tmp_path / "model")
    manifest.verify(tmp_path / "model")
    facts = manifest.hyperparameters
    assert (facts["heads"], facts["neurons"], facts["processes"]) == ([2], [32], 2)
    assert 0.499 <= facts["sparsity"] <= 0.51
    assert manifest.metrics["accuracy"] >= 0.9
    assert not list(tmp_path.glob("checkpoints/*/checkpoint-*"))
