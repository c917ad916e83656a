"""Several processes train one model as one process would with their batches put together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import TrainerState

from stillhouse.artifacts import DatasetManifest, ModelManifest
from stillhouse.errors import InputError
from stillhouse.progress import EVENTS_VARIABLE, Step
from stillhouse.training import DistillationSettings, DistillConfig, FinetuneConfig, launch, steps
from stillhouse.training.checkpoints import CheckpointStore
from stillhouse.training.scale import ScaleConfig
from stillhouse.training.staging import Work
from stillhouse.training.trainer import _GroupedSampler
from stillhouse.training.watch import Watch

# Dropout is drawn by each process for itself, so the curves can only be the same without it.
SCRATCH = (
    "scratch://bert?num_hidden_layers=2&hidden_size=32&num_attention_heads=2&intermediate_size=64&vocab_size=200"
    "&hidden_dropout_prob=0&attention_probs_dropout_prob=0"
)
# Twice an epoch makes every step a line of the history, which a loss averaged over steps before a kill would not match.
COMMON: dict[str, Any] = dict(
    learning_rate=1e-3, max_length=16, evaluations_per_epoch=2, early_stopping_patience=0, precision="fp32"
)


def teacher_config(batch_size: int, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(name="teacher", checkpoint=SCRATCH, batch_size=batch_size, **{**COMMON, **changes})


def assert_same_history(one: Path, together: Path) -> None:
    """The same steps, losses, gradients and evaluations, but for rounding, and the same metrics of the result."""
    histories = [json.loads((folder / "history.json").read_text()) for folder in (one, together)]
    timings = ("_runtime", "_per_second")
    expected, found = ([{k: v for k, v in e.items() if not k.endswith(timings)} for e in h] for h in histories)
    assert len(expected) > 5
    assert [entry.keys() for entry in found] == [entry.keys() for entry in expected]
    for before, after in zip(expected, found, strict=True):
        assert after == pytest.approx(before, rel=2e-3, abs=1e-5)
    assert ModelManifest.load(together).metrics == pytest.approx(ModelManifest.load(one).metrics, rel=2e-3, abs=1e-5)


def test_row_order_depends_on_seed_and_epoch_and_keeps_a_steps_rows_together():
    lengths = [(7 * i) % 13 + 1 for i in range(100)]
    orders = [
        list(_GroupedSampler(16, lengths, seed, lambda epoch=epoch: epoch))
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(100)) for order in orders)


TRAIN = """
import json
import sys
from pathlib import Path
from stillhouse.training import launch
from stillhouse.training.staging import Work
work, dataset, output = sys.argv[1:]
launch._train_here(Work.from_json(json.loads(work)), inputs={"dataset": Path(dataset)}, output_dir=Path(output))
"""


def test_the_best_checkpoint_is_found_again_in_a_new_copy_of_the_store(tmp_path: Path):
    (tmp_path / "checkpoint-5").mkdir()
    for step, found in ((5, str(tmp_path / "checkpoint-5")), (6, None), (None, None)):
        # As the trainer restores it: the step, and no path, since the path it was saved with is gone.
        state = TrainerState(best_global_step=step)
        Watch(None, CheckpointStore(tmp_path)).on_train_begin(None, state, None)
        assert state.best_model_checkpoint == found


@pytest.mark.slow
def test_two_processes_killed_and_continued_make_the_steps_of_one(dataset: Path, tmp_path: Path):
    steps.finetune(teacher_config(32, epochs=5), dataset_dir=dataset, output_dir=tmp_path / "one")

    config = teacher_config(16, epochs=5, checkpoint_dir=str(tmp_path / "checkpoints"))
    inputs = {"dataset": DatasetManifest.digest(dataset)}
    # This machine has no GPUs to count, so what follows the count is called.
    work = Work(config=config, step="finetune-teacher", nodes=1, processes=2, inputs=inputs)
    model, events, scratch = tmp_path / "model", tmp_path / "events.jsonl", tmp_path / "scratch"
    command = [sys.executable, "-c", TRAIN, json.dumps(work.to_json()), str(dataset), str(model)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch), EVENTS_VARIABLE: str(events)}
    scratch.mkdir()
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 180
    while not list(tmp_path.glob("checkpoints/*/checkpoint-*/whole")):
        assert first.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.02)
    # Each of torchrun's processes leads a session of its own.
    for process in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
        process.kill()
    first.wait()
    assert not model.exists()
    events.unlink()
    for leftover in scratch.iterdir():
        shutil.rmtree(leftover)

    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert second.returncode == 0, second.stderr
    assert "continuing from" in second.stderr
    assert_same_history(tmp_path / "one", model)
    manifest = ModelManifest.load(model)
    manifest.verify(model)
    assert manifest.hyperparameters["processes"] == 2
    # One process alone tells how far it is, and only of steps that it takes itself.
    done = [json.loads(line)["done"] for line in events.open()]
    assert 1 < done[0] < done[-1] == 80
    assert done == sorted(set(done))
    assert not list(tmp_path.glob("checkpoints/*/checkpoint-*"))
    assert not list(scratch.glob("stillhouse-*"))


def run_job(job: dict[str, Any], secrets: dict[str, dict[str, str]], logs: Path) -> Callable[[], list[int]]:
    """Start a TrainJob's machines as processes, with the environment that Kubeflow Trainer gives them."""
    trainer = job["spec"]["trainer"]
    given = {
        one["name"]: one.get("value") or secrets[one["valueFrom"]["secretKeyRef"]["name"]][one["name"]]
        for one in trainer["env"]
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "KFP_", "STILLHOUSE_"))}
    machines = []
    for index in range(trainer["numNodes"]):
        torch = {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        }
        scratch = logs / f"machine-{index}"
        scratch.mkdir(parents=True)
        environment = {**clean, **given, **torch, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *trainer["command"][1:]]
        with (logs / f"{index}.log").open("w") as log:
            machines.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return lambda: [machine.wait(timeout=180) for machine in machines]


@pytest.mark.slow
def test_a_train_job_of_two_machines_distils_what_one_does(
    dataset: Path, tmp_path: Path, kubernetes: Any, bucket: str, pod: Any
):
    teacher = tmp_path / "teacher"
    steps.finetune(teacher_config(32, epochs=1), dataset_dir=dataset, output_dir=teacher)
    settings = DistillationSettings(word_dropout=0)
    place = f"{bucket}/{tmp_path.name}"

    def config(**changes: Any) -> DistillConfig:
        return DistillConfig(name="student", epochs=2, distillation=settings, **{**COMMON, **changes})

    one = tmp_path / "one"
    steps.distill(
        config(batch_size=16, gradient_accumulation_steps=2), dataset_dir=dataset, teacher_dir=teacher, output_dir=one
    )

    step = kubernetes.pods[pod["metadata"]["name"]]
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    secrets = {"stillhouse-object-store": {name: os.environ[name] for name in names}}
    step["spec"]["containers"][1]["env"] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": "stillhouse-object-store", "key": name}}}
        for name in names
    ]

    def trainer(job: dict[str, Any]) -> None:
        codes = run_job(job, secrets, tmp_path / "machines")()
        kubernetes.set_condition(job["metadata"]["name"], "Failed" if any(codes) else "Complete")

    kubernetes.trainer = trainer
    work = Work(
        config=config(batch_size=8, gradient_accumulation_steps=2, checkpoint_dir=place), step="distill-student",
        nodes=2, processes=1,
        inputs={"dataset": DatasetManifest.digest(dataset), "teacher": ModelManifest.digest(teacher)},
    )  # fmt: skip
    inputs = {"dataset": dataset, "teacher": teacher}
    before = signal.getsignal(signal.SIGTERM)
    scale = ScaleConfig(num_nodes=2, checkpoint_dir=place)
    try:
        manifest = launch.train_under_trainer(
            work, inputs=inputs, output_dir=tmp_path / "model", scale=scale, step=Step("distill-student"),
            cluster=kubernetes.config, poll_s=0.1,
        )  # fmt: skip
    except Exception as error:
        pytest.fail(f"{error}\n" + "\n".join(path.read_text() for path in tmp_path.glob("machines/*.log")))
    assert_same_history(one, tmp_path / "model")
    assert manifest.inputs == work.inputs
    # Nothing is left on the machines, and in the store the checkpoints alone, in case the step cannot upload the model.
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    left = {path.split("/")[2] for path in s3fs.S3FileSystem().find(place.removeprefix("s3://"))}
    assert len(left) == 2 and "finished" in left and "trainjobs" not in left
    assert not list(tmp_path.glob("machines/machine-*/stillhouse-*"))
    # What the secrets hold is in no manifest.
    assert secrets["stillhouse-object-store"]["AWS_ENDPOINT_URL"] not in json.dumps(kubernetes.created)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_what_the_processes_find_wrong_is_the_steps_own_error(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = FinetuneConfig(
        name="teacher", checkpoint=SCRATCH + "&max_position_embeddings=12", checkpoint_dir=str(tmp_path / "c"), **COMMON
    )
    work = Work(
        config=config, step="finetune", nodes=1, processes=2, inputs={"dataset": DatasetManifest.digest(dataset)}
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(InputError, match="max_length"):
        launch._train_here(work, inputs={"dataset": dataset}, output_dir=tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
