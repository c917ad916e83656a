"""A step's TrainJob from start to end, against an HTTP stand-in of the Kubernetes API."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse.artifacts import DatasetManifest, ModelManifest
from stillhouse.errors import InputError, ManifestError, TrainingError
from stillhouse.progress import EVENTS_VARIABLE, Step
from stillhouse.training import FinetuneConfig
from stillhouse.training.launch import train, train_under_trainer
from stillhouse.training.scale import ScaleConfig
from stillhouse.training.staging import Place, Work

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(path))
    return path


@pytest.fixture
def launch(kubernetes: Any, dataset: Path, tmp_path: Path, bucket: str) -> Callable[..., ModelManifest]:
    """Run a step on two machines that meet in an object store."""

    def go(seed: int = 1) -> ModelManifest:
        place = f"{bucket}/{tmp_path.name}"
        config = FinetuneConfig(name="teacher", checkpoint="scratch://bert", seed=seed, checkpoint_dir=place)
        inputs = {"dataset": DatasetManifest.digest(dataset)}
        work = Work(config=config, step="finetune-teacher", nodes=2, processes=1, inputs=inputs)
        scale = ScaleConfig(num_nodes=2, checkpoint_dir=place)
        return train_under_trainer(
            work, inputs={"dataset": dataset}, output_dir=tmp_path / "model", scale=scale,
            step=Step("finetune-teacher"), cluster=kubernetes.config, poll_s=0.02,
        )  # fmt: skip

    return go


def place_of(job: dict[str, Any]) -> Place:
    return Place(job["spec"]["trainer"]["command"][-1])


def write_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    ModelManifest(
        producer="finetune", name="teacher", task="classification", recipe="from scratch", family="bert",
        label_names=["bad", "good"], parameters=1, max_length=16, hyperparameters={}, metrics={"accuracy": 0.5},
    ).save(folder)  # fmt: skip
    return folder


def left(bucket: str) -> list[str]:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    return [str(path) for path in s3fs.S3FileSystem().find(bucket.removeprefix("s3://"))]


def succeed(kubernetes: Any, tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    def work(job: dict[str, Any]) -> None:
        place, name = place_of(job), job["metadata"]["name"]
        # What the machines need is there before the job is.
        place.get("dataset", tmp_path / "seen")
        assert Work.from_json(place.read("work.json")).nodes == 2
        place.write("progress.json", {"done": 3, "total": 10, "note": "validation accuracy 0.500"})
        time.sleep(0.2)
        place.put("model", write_model(tmp_path / "made"))
        kubernetes.set_condition(name, "Complete")

    return work


def test_a_job_is_started_watched_fetched_and_deleted(
    launch: Any, kubernetes: Any, tmp_path: Path, events: Path, bucket: str
):
    kubernetes.trainer = succeed(kubernetes, tmp_path)
    manifest = launch()
    assert manifest.metrics == {"accuracy": 0.5}
    manifest.verify(tmp_path / "model")
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    assert {"done": 3, "total": 10, "note": "validation accuracy 0.500"}.items() <= seen[-1].items()
    assert kubernetes.jobs == {}
    assert not left(bucket)
    assert [call for call in kubernetes.calls if call[0] != "GET"] == [
        ("POST", JOBS),
        (
            "DELETE",
            f"{JOBS}/{next(path for method, path in kubernetes.calls if method == 'DELETE').rpartition('/')[2]}",
        ),
    ]


def test_a_failed_job_is_left_with_its_last_lines_in_the_error(
    launch: Any, kubernetes: Any, tmp_path: Path, bucket: str
):
    def fail(job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        kubernetes.add_pod(name, 0, {"phase": "Running"}, "I was waiting for the other")
        kubernetes.add_pod(name, 1, {"phase": "Failed"}, "starting\nCUDA out of memory")
        kubernetes.set_condition(name, "Failed")

    kubernetes.trainer = fail
    with pytest.raises(TrainingError, match="CUDA out of memory") as caught:
        launch()
    assert "waiting for the other" not in str(caught.value)
    assert list(kubernetes.jobs) == [name for name in kubernetes.jobs if "stillhouse-teacher-" in name]
    assert not left(bucket)
    # The next try of the step begins anew.
    kubernetes.slow_deletion = True
    kubernetes.trainer = succeed(kubernetes, tmp_path)
    assert launch().metrics == {"accuracy": 0.5}
    assert [call[0] for call in kubernetes.calls if call[0] != "GET"] == ["POST", "DELETE", "POST", "DELETE"]


def test_what_the_workers_foresaw_comes_back_as_they_said_it(launch: Any, kubernetes: Any):
    def refuse(job: dict[str, Any]) -> None:
        problem = {"where": "max_length", "what": "512 exceeds the 128 positions of teacher.", "remedy": "Give 128."}
        place_of(job).write("failure.json", {"message": "…", "problems": [problem]})
        kubernetes.set_condition(job["metadata"]["name"], "Failed")

    kubernetes.trainer = refuse
    with pytest.raises(InputError) as caught:
        launch()
    assert [problem.where for problem in caught.value.problems] == ["max_length"]


def test_a_step_that_is_tried_again_goes_on_watching(
    launch: Any, kubernetes: Any, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    jobs: list[dict[str, Any]] = []

    def vanish(job: dict[str, Any]) -> None:
        jobs.append(job)
        kubernetes.outages = 10**6

    kubernetes.trainer = vanish
    with monkeypatch.context() as patch:
        patch.setattr("stillhouse.training.launch._PATIENCE_S", 0)
        with pytest.raises(TrainingError, match="cannot be watched any longer"):
            launch()
    kubernetes.outages = 0
    assert left(bucket)  # its machines may still need what was put there
    finish = threading.Timer(0.2, succeed(kubernetes, tmp_path), jobs)
    finish.start()
    assert launch().metrics == {"accuracy": 0.5}
    assert [call[0] for call in kubernetes.calls if call[0] != "GET"] == ["POST", "DELETE"]


def test_a_job_that_ended_unwatched_is_fetched(launch: Any, kubernetes: Any, tmp_path: Path, bucket: str):
    kubernetes.trainer = succeed(kubernetes, tmp_path)
    launch()
    # As a step leaves it that died between the job's end and its own.
    job = next(body for body in kubernetes.created)
    place_of(job).put("model", tmp_path / "made")
    kubernetes.jobs[job["metadata"]["name"]] = job
    assert launch().metrics == {"accuracy": 0.5}
    # Without the model, it is done again.
    kubernetes.jobs[job["metadata"]["name"]] = job
    (tmp_path / "made").rename(tmp_path / "before")
    assert launch().metrics == {"accuracy": 0.5}
    calls = [call[0] for call in kubernetes.calls if call[0] != "GET"]
    assert calls == ["POST", "DELETE", "DELETE", "DELETE", "POST", "DELETE"]


def test_another_run_and_other_settings_have_jobs_of_their_own(launch: Any, kubernetes: Any, tmp_path: Path, pod: Any):
    names = []

    def note(job: dict[str, Any]) -> None:
        names.append(job["metadata"]["name"])
        kubernetes.set_condition(names[-1], "Failed")

    kubernetes.trainer = note
    for seed, run in ((1, "a"), (2, "a"), (2, "b"), (2, "b")):
        kubernetes.pods[pod["metadata"]["name"]]["metadata"]["labels"]["pipeline/runid"] = run
        with pytest.raises(TrainingError):
            launch(seed)
    assert len(set(names)) == 3
    assert names[2] == names[3]
    assert all(len(name) <= 40 for name in names)  # the names of its pods are longer, and end at 63


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No garbage collection: Hypothesis has Python run at each, and what a signal raises there is dropped."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="only there are signals handled")
def test_a_step_that_is_terminated_deletes_its_job(launch: Any, kubernetes: Any, bucket: str):
    kubernetes.trainer = lambda job: os.kill(os.getpid(), signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        launch()
    assert caught.value.code == 143
    assert kubernetes.jobs == {}
    assert not left(bucket)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_model_that_is_not_whole_is_refused(launch: Any, kubernetes: Any, tmp_path: Path, bucket: str):
    def spoil(job: dict[str, Any]) -> None:
        model = write_model(tmp_path / "made")
        (model / "model.safetensors").write_bytes(b"other weights")
        place_of(job).put("model", model)
        kubernetes.set_condition(job["metadata"]["name"], "Complete")

    kubernetes.trainer = spoil
    with pytest.raises(ManifestError, match="altered"):
        launch()
    assert kubernetes.jobs == {}
    assert not left(bucket)


def test_a_cluster_that_is_out_of_reach_for_a_while_is_asked_again(launch: Any, kubernetes: Any, tmp_path: Path):
    work = succeed(kubernetes, tmp_path)

    def away(job: dict[str, Any]) -> None:
        kubernetes.outages = 3
        work(job)

    kubernetes.trainer = away
    assert launch().metrics == {"accuracy": 0.5}
    assert kubernetes.outages == 0


def test_waiting_for_machines_is_told(launch: Any, kubernetes: Any, tmp_path: Path, events: Path):
    work = succeed(kubernetes, tmp_path)
    reason = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."

    def wait(job: dict[str, Any]) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": reason}
        kubernetes.add_pod(job["metadata"]["name"], 0, {"phase": "Pending", "conditions": [condition]})
        time.sleep(0.3)
        work(job)

    kubernetes.trainer = wait
    launch()
    assert f"waiting for machines: {reason}" in [json.loads(line).get("note") for line in events.open()]


@pytest.mark.parametrize("outcome", ["Complete", "Failed"])
def test_what_cannot_be_cleaned_up_changes_no_outcome(
    launch: Any, kubernetes: Any, tmp_path: Path, bucket: str, outcome: str, monkeypatch: pytest.MonkeyPatch
):
    def end(job: dict[str, Any]) -> None:
        place = place_of(job)
        place.put("model", write_model(tmp_path / "made"))
        place.write("failure.json", {"message": "the GPU fell off", "problems": []})
        kubernetes.deletion_refusal = (403, "not yours")
        monkeypatch.setattr(Place, "remove", refuse)
        kubernetes.set_condition(job["metadata"]["name"], outcome)

    def refuse(place: Place) -> None:
        raise PermissionError("the bucket's policy")

    kubernetes.trainer = end
    if outcome == "Failed":
        with pytest.raises(TrainingError, match="the GPU fell off"):
            launch()
    else:
        assert launch().metrics == {"accuracy": 0.5}
    monkeypatch.undo()
    Place(f"{bucket}/{tmp_path.name}").remove()


def test_a_job_deleted_from_outside_ends_the_step(launch: Any, kubernetes: Any, bucket: str):
    kubernetes.trainer = lambda job: kubernetes.jobs.clear()
    with pytest.raises(TrainingError, match="deleted while it ran"):
        launch()
    assert not left(bucket)


def test_refusals_of_the_cluster_say_what_was_wanted(
    launch: Any, kubernetes: Any, monkeypatch: pytest.MonkeyPatch, bucket: str, caplog: pytest.LogCaptureFixture
):
    message = 'trainjobs.trainer.kubeflow.org is forbidden: User "default-editor" cannot create resource "trainjobs"'
    kubernetes.refusal = (403, message)
    with pytest.raises(TrainingError, match=r"could not create the TrainJob stillhouse-teacher-\w+: .*forbidden"):
        launch()
    assert not left(bucket)  # the inputs were for that job
    assert "kubeflow-trainer-public" not in caplog.text  # which the stand-in has not, and nobody needs
    monkeypatch.setattr("stillhouse.training.trainjob.RUNTIME", "other")
    with pytest.raises(TrainingError, match=r"training runtime 'other' cannot be read.*not found"):
        launch()


def test_several_machines_are_refused_where_there_is_one(dataset: Path, tmp_path: Path):
    config = FinetuneConfig(name="teacher", checkpoint="scratch://bert", checkpoint_dir=str(tmp_path / "c"))
    for name, value in (("num_nodes", 2), ("gpus_per_node", 99)):
        scale = ScaleConfig(checkpoint_dir=config.checkpoint_dir, **{name: value})
        assert [problem.where for problem in scale.machine_problems()] == [name]
        with pytest.raises(InputError, match=name):
            train(config, scale=scale, dataset_dir=dataset, output_dir=tmp_path / "x", step=Step("x"))
    assert ScaleConfig(gpus_per_node=1).machine_problems() == []


def test_on_a_cluster_there_may_be_several(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KFP_POD_NAME", "step")
    assert ScaleConfig(num_nodes=2, gpus_per_node=8).machine_problems() == []


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("file:///checkpoints", ""),
        ("s3://bucket/x", ""),
        ("s4://bucket/x", "cannot be kept at s4://"),
        ("https://host/x", "cannot be kept at https://"),
    ],
)
def test_checkpoints_go_where_files_can_be_written(location: str, words: str):
    found = ScaleConfig(checkpoint_dir=location).problems()
    assert " ".join(map(str, found)).count(words) == 1 if words else not found


def test_a_place_that_cannot_be_written_ends_no_training(caplog: pytest.LogCaptureFixture):
    from stillhouse.training.worker import _Reporter

    class Full:
        def write(self, name: str, value: Any) -> None:
            raise OSError("no space")

    _Reporter("finetune-teacher", Full()).progress(1, 1)
    assert "no space" in caplog.text
