"""Where a training step runs: in the step itself, on the GPUs of its machine, or under Kubeflow Trainer.

Under Kubeflow Trainer the step only starts, watches and ends a TrainJob, and this holds of its life:

- Its name follows from the run and from what determines the training. A step that is tried again finds the job that it
  started before, and goes on watching it.
- Once the model has been fetched and checked, the job is deleted.
- A job that failed is left for inspection, until the step is tried again or the run is deleted.
- When the step is ended from outside (SIGTERM: the run was terminated, or its time is up), the job is deleted rather
  than suspended: it holds GPUs for a run that nobody waits for, and what it learnt is in the checkpoints, from which a
  later run continues.
- Inputs and outcome lie in `<checkpoint_dir>/trainjobs/<name>`, which is removed whenever the step ends with the job at
  an end, or before there was one.
- What cannot be cleaned up is logged. It takes no result away, and hides no error.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import ModelManifest, digest_json
from stillhouse.errors import InputError, TrainingError
from stillhouse.interrupts import handlers_kept, terminable
from stillhouse.progress import Step
from stillhouse.training.config import DistillConfig, FinetuneConfig
from stillhouse.training.manifest import RUN_LABEL, train_job
from stillhouse.training.scale import ScaleConfig, in_cluster, local_path
from stillhouse.training.staging import MANIFESTS, Place, Work
from stillhouse.training.trainjob import State, TrainJobs

if TYPE_CHECKING:
    from kubeflow.trainer import KubernetesBackendConfig

    from stillhouse.pretraining import PretrainConfig

__all__ = ["pretrain", "train", "train_under_trainer"]

_log = logging.getLogger(__name__)
_POLL_S = 5.0
_PATIENCE_S = 600.0
"""How long the cluster may be out of reach before the step gives up; the job goes on, and the next try finds it."""


def train(
    config: FinetuneConfig | DistillConfig,
    *,
    scale: ScaleConfig,
    dataset_dir: Path,
    output_dir: Path,
    teacher_dir: Path | None = None,
    step: Step,
) -> ModelManifest:
    """Do a training step where `scale` says, and write its model artifact to `output_dir`.

    Raises:
        InputError: the settings will not do, here or on the machines that train.
        TrainingError: the machines or processes that train failed.
    """
    from stillhouse.training import steps

    if not scale.distributed:
        return steps.run(config, dataset_dir=dataset_dir, teacher_dir=teacher_dir, output_dir=output_dir, step=step)
    inputs = {"dataset": dataset_dir, **({"teacher": teacher_dir} if teacher_dir else {})}
    return _together(config, inputs=inputs, output_dir=output_dir, scale=scale, step=step)


def pretrain(
    config: PretrainConfig, *, scale: ScaleConfig, corpus_dir: Path, output_dir: Path, step: Step
) -> ModelManifest:
    """Pretrain where `scale` says; the rest as for `train`."""
    from stillhouse.pretraining import pretrain as alone

    if not scale.distributed:
        return alone(config, corpus_dir=corpus_dir, output_dir=output_dir, step=step)
    return _together(config, inputs={"corpus": corpus_dir}, output_dir=output_dir, scale=scale, step=step)


def _together(
    config: FinetuneConfig | DistillConfig | PretrainConfig,
    *,
    inputs: dict[str, Path],
    output_dir: Path,
    scale: ScaleConfig,
    step: Step,
) -> ModelManifest:
    """Train in several processes, on a cluster in pods of their own."""
    if problems := [*config.problems(), *scale.problems(), *scale.machine_problems()]:
        raise InputError(problems)
    work = Work(
        config=config,
        step=step.id,
        nodes=scale.num_nodes,
        processes=scale.processes,
        inputs={role: MANIFESTS[role].digest(folder) for role, folder in inputs.items()},
    )
    if in_cluster():
        return train_under_trainer(work, inputs=inputs, output_dir=output_dir, scale=scale, step=step)
    return _train_here(work, inputs=inputs, output_dir=output_dir)


def _train_here(work: Work, *, inputs: dict[str, Path], output_dir: Path) -> ModelManifest:
    """Train with one process for each GPU of this machine, which report events as the step itself does."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from stillhouse.training import node

    with tempfile.TemporaryDirectory(prefix="stillhouse-training-") as folder:
        place = Place(folder)
        for role, path in inputs.items():
            (Path(folder) / role).symlink_to(path.absolute(), target_is_directory=True)
        place.write("work.json", work.to_json())
        try:
            with handlers_kept():  # torchrun leaves its own: Ctrl-C would no longer be a KeyboardInterrupt
                node.run(folder)
        except (ChildFailedError, SystemExit) as error:
            if isinstance(error, SystemExit) and not place.read("failure.json"):
                raise
            place.raise_failure(TrainingError("The processes that train failed; their messages are in the step's log."))
        shutil.copytree(Path(folder) / "model", output_dir, dirs_exist_ok=True)
    return ModelManifest.load(output_dir)


def train_under_trainer(
    work: Work,
    *,
    inputs: dict[str, Path],
    output_dir: Path,
    scale: ScaleConfig,
    step: Step,
    cluster: KubernetesBackendConfig | None = None,
    poll_s: float = _POLL_S,
) -> ModelManifest:
    """Train in the pods of a TrainJob.

    Args:
        work: what is to be done.
        inputs: folders of the artifacts that `work.inputs` names.
        output_dir: where the model goes.
        scale: machines and GPUs, and where they meet.
        step: told how far the training is.
        cluster: how to reach the cluster; by default as the pod does that this runs in.
        poll_s: seconds between looks at the job.

    Raises:
        InputError: the settings will not do, on the machines that train.
        TrainingError: the job cannot be created, or failed; with its pods' last lines.
        ManifestError: the model is not there, or not as it was written.
    """
    jobs = TrainJobs(cluster)
    pod = jobs.own_pod()
    # Only what decides the outcome: a step that is tried again must come to the same name.
    settings = {**dataclasses.asdict(work.config), "nodes": work.nodes, "processes": work.processes}
    run = pod["metadata"].get("labels", {}).get(RUN_LABEL) or pod["metadata"]["uid"]
    role = "pretrain" if "corpus" in work.inputs else re.sub(r"[^a-z0-9]+", "-", work.config.name.lower())
    role = role[:16].strip("-")  # the names of its pods are longer, and end at 63
    name = f"stillhouse-{role}-{digest_json([run, settings, dict(work.inputs)])[:12]}"
    root = local_path(scale.checkpoint_dir) or scale.checkpoint_dir.rstrip("/")
    place = Place(f"{root}/trainjobs/{name}")
    manifest = train_job(pod, name=name, place=place.uri, scale=scale, runtime=jobs.runtime())
    with terminable():
        try:
            state = jobs.state(name)
            if state == "active" or (state == "complete" and place.read("model/model.json")):
                _log.info("TrainJob %s/%s was started before; watching it", jobs.namespace, name)
            else:
                if state != "absent":
                    jobs.delete(name)
                    jobs.wait_until_gone(name)
                _start(jobs, manifest, place, work, inputs)
                _log.info("TrainJob %s/%s started", jobs.namespace, name)
            state = _follow(jobs, name, place, step, poll_s)
        except (SystemExit, KeyboardInterrupt):
            _log.warning("the step is being ended; deleting TrainJob %s", name)
            _clean_up(lambda: jobs.delete(name), place.remove)
            raise
        try:
            if state == "failed":
                what = f"TrainJob {jobs.namespace}/{name} failed. It is left for inspection."
                place.raise_failure(TrainingError(what, jobs.last_lines(name)))
            if state != "complete":
                raise TrainingError(f"TrainJob {jobs.namespace}/{name} was deleted while it ran.")
            place.get("model", output_dir)
        finally:
            if state != "failed":
                _clean_up(lambda: jobs.delete(name))
            _clean_up(place.remove)
    return ModelManifest.load(output_dir)


def _start(jobs: TrainJobs, manifest: dict[str, Any], place: Place, work: Work, inputs: dict[str, Path]) -> None:
    """Lay the inputs out, and create the job; without a job, nothing of them stays."""
    try:
        place.remove()
        for role, folder in inputs.items():
            place.put(role, folder)
        place.write("work.json", work.to_json())
        jobs.create(manifest)
    except Exception:
        # It may be there all the same, where only the answer was lost.
        _clean_up(lambda: jobs.delete(manifest["metadata"]["name"]), place.remove)
        raise


def _clean_up(*actions: Callable[[], None]) -> None:
    for action in actions:
        try:
            action()
        except Exception as error:  # of the cluster or of any object store
            _log.warning("what the training needed could not be cleaned up: %s", error)


def _follow(jobs: TrainJobs, name: str, place: Place, step: Step, poll_s: float) -> State:
    """Watch the job until it is no longer active, telling the step of its progress; the state that it ended in."""
    reached, seen, obstacle = time.monotonic(), None, ""
    while True:
        try:
            state = jobs.state(name)
            progress = place.read("progress.json")
            waits_for = jobs.obstacle(name) if progress is None else ""
            reached = time.monotonic()
        except Exception as error:  # of the cluster or of any object store; the job goes on all the same
            if time.monotonic() - reached > _PATIENCE_S:
                raise TrainingError(f"TrainJob {name} cannot be watched any longer; it goes on. {error}") from error
            _log.warning("TrainJob %s cannot be watched at present: %s", name, error)
        else:
            if progress and progress != seen:
                seen = progress
                step.progress(progress["done"], progress["total"], progress["note"])
            if waits_for and waits_for != obstacle:
                obstacle = waits_for
                step.progress(0, 1, f"waiting for machines: {waits_for}")
            if state != "active":
                return state
        time.sleep(poll_s)
