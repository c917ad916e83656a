"""Runs on Kubeflow: what is refused beforehand, starting one, and following it until it ends."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import kfp_server_api

from stillhouse.errors import InputError, Problem, StillhouseError
from stillhouse.models.candidates import PARAMETER, parse_candidates
from stillhouse.pipelines.catalogue import TRAIN_AND_DEPLOY, Pipeline
from stillhouse.pipelines.local import LocalSteps
from stillhouse.pipelines.remote.connection import Api, NotFoundError, UnreachableError
from stillhouse.pipelines.remote.uploads import Uploaded
from stillhouse.progress import emit
from stillhouse.redaction import redacted
from stillhouse.registry.tracking import uri_problems
from stillhouse.training.scale import local_path

__all__ = ["create_run", "experiment_id", "follow", "get_run", "run_link", "submission_problems"]

_HERE = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
_PATIENCE_SECONDS = 600
"""How long answers may fail to come before watching ends."""
_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


def submission_problems(arguments: Mapping[str, Any], pipeline: Pipeline = TRAIN_AND_DEPLOY) -> list[Problem]:
    """Everything wrong with a run's arguments that can be told from here, what exists on this machine only included."""
    found: list[Problem] = []
    if arguments.get("deploy_target") == "local":
        remedy = "Choose --set deploy_target=none."
        found.append(Problem("deploy_target", "'local' would end together with the step's pod.", remedy))
    for name in pipeline.sources:
        value = str(arguments.get(name, "")).strip()
        if value and ("://" not in value or value.startswith(("file://", "hub:///"))):
            remedy = "Upload it, and give s3://, gs:// or https://; or hub://OWNER/NAME."
            found.append(Problem(name, f"{redacted(value)!r} is on this machine, and steps run elsewhere.", remedy))
    extras, _ = parse_candidates(arguments.get(PARAMETER) or [])
    checkpoints = [(name, str(arguments.get(name, ""))) for name in pipeline.checkpoints]
    for name, value in [*checkpoints, *((PARAMETER, extra.checkpoint) for extra in extras)]:
        if value and "://" not in value and not PurePosixPath(value).is_absolute():
            remedy = "Give hub://OWNER/NAME, or an absolute path on a volume that the cluster's file mounts."
            found.append(Problem(name, f"{value!r} is on this machine, and steps run elsewhere.", remedy))
    for name in pipeline.stores:
        folder = str(arguments.get(name, ""))
        path = local_path(folder)
        if folder and path is not None and not path.is_absolute():
            remedy = "Give s3:// or gs://, or an absolute path on a volume that the cluster's file mounts."
            found.append(Problem(name, f"{folder!r} is on this machine, and steps run elsewhere.", remedy))
    uri = str(arguments.get("tracking_uri", ""))
    if uri.startswith("sqlite") or _host(uri) in _HERE:
        remedy = "Name a server that the cluster reaches; or leave it empty, for the cluster's MLFLOW_TRACKING_URI."
        found.append(Problem("tracking_uri", "is on this machine, and steps run elsewhere.", remedy))
    known = {problem.where for problem in found}
    # Each of several candidates may have a fault of its own.
    found += [problem for problem in _elsewhere(arguments, pipeline) if problem.where not in known - {PARAMETER}]
    return found


def _elsewhere(arguments: Mapping[str, Any], pipeline: Pipeline) -> list[Problem]:
    """What is wrong on any machine: what only the cluster can tell is put out of the question first."""
    from stillhouse.models.checkpoints import check_reference  # imports torch

    found: list[Problem] = []
    neutral = {pipeline.source: pipeline.placeholder, **arguments}
    if neutral.get("deploy_target") == "local":
        neutral["deploy_target"] = "none"
    for name in pipeline.sources:
        if "://" not in str(neutral[name]):
            neutral[name] = pipeline.placeholder if name == pipeline.source else ""
    if neutral["tracking_uri"]:
        found += uri_problems(neutral["tracking_uri"])
    neutral["tracking_uri"] = "https://mlflow.invalid"
    for name in pipeline.checkpoints:
        value = str(neutral[name])
        if value.startswith(("scratch://", "teacher://")):
            found += check_reference(value, name)
        elif value == "minilm://" or (value and "://" not in value):
            neutral[name] = "hub://of-the-cluster"
    extras, _ = parse_candidates(neutral.get(PARAMETER) or [])
    for checkpoint in (extra.checkpoint for extra in extras if extra.checkpoint.startswith("scratch://")):
        found += check_reference(checkpoint, PARAMETER)
    if PARAMETER in neutral:
        neutral[PARAMETER] = [_of_the_cluster(item) for item in neutral[PARAMETER] or []]
    # Which hub the cluster reaches, and with what token, cannot be told here.
    found += pipeline.problems(neutral)
    return list(dict.fromkeys(found))


def _of_the_cluster(item: Any) -> Any:
    """An extra candidate whose folder is on the cluster, as one that need not be looked for here."""
    found, _ = parse_candidates([item])
    elsewhere = bool(found) and (found[0].checkpoint == "minilm://" or "://" not in found[0].checkpoint)
    return f"{found[0].name}=hub://of-the-cluster" if elsewhere else item


def _host(uri: str) -> str:
    try:
        return urlsplit(uri).hostname or ""
    except ValueError:
        return ""


def experiment_id(api: Api, name: str) -> str:
    """The experiment of that name in the namespace, created if it is not there.

    Raises:
        InputError: it is archived.
    """
    listed = api.pages(
        "look for the experiment", api.experiments.experiment_service_list_experiments, "experiments", **api.namespace
    )
    found = {str(one.storage_state): str(one.experiment_id) for one in listed if one.display_name == name}
    archived = found.pop("ARCHIVED", "")
    if found:
        return next(iter(found.values()))
    if archived:  # the name is taken all the same
        remedy = "Restore it in the user interface, or give another name."
        raise InputError(Problem("--experiment", f"{name!r} is archived, and takes no runs.", remedy))
    body = kfp_server_api.V2beta1Experiment(display_name=name, **api.namespace)
    created = api.call("create the experiment", api.experiments.experiment_service_create_experiment, body)
    return str(created.experiment_id)


def create_run(api: Api, uploaded: Uploaded, *, name: str, experiment: str, parameters: Mapping[str, Any]) -> Any:
    """Start a run of an uploaded version.

    Args:
        api: Kubeflow Pipelines.
        uploaded: the version.
        name: of the run.
        experiment: name of the experiment, created if it is not there.
        parameters: values that differ from the version's defaults.
    """
    body = kfp_server_api.V2beta1Run(
        display_name=name,
        experiment_id=experiment_id(api, experiment),
        pipeline_version_reference=kfp_server_api.V2beta1PipelineVersionReference(
            pipeline_id=uploaded.pipeline_id, pipeline_version_id=uploaded.version_id
        ),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(parameters)),
    )
    return api.call("start the run", api.runs.run_service_create_run, body)


def get_run(api: Api, run_id: str) -> Any:
    """A run by its id.

    Raises:
        InputError: there is no such run.
    """
    try:
        return api.call("read the run", api.runs.run_service_get_run, run_id)
    except NotFoundError:
        where = f"{run_id!r} is at {api.connection.endpoint}."
        raise InputError(Problem("RUN", f"no run {where}", "Copy the id from the user interface.")) from None


def run_link(api: Api, run_id: str) -> str:
    """Address of a run in the user interface."""
    return api.connection.link(f"runs/details/{run_id}")


def follow(
    api: Api,
    run_id: str,
    steps: LocalSteps,
    *,
    interval: float = 5.0,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """Report the run's steps as progress events until it has ended; returns why it failed, empty if it did not.

    Args:
        api: Kubeflow Pipelines.
        run_id: the run.
        steps: those of the pipeline that it runs.
        interval: seconds between two looks.
        pause: waits.

    Raises:
        StillhouseError: it cannot be watched any longer.
    """
    emit("run", "plan", steps=[{"id": step_id, "title": title} for step_id, title in steps.titles.items()])
    reporter = _Reporter(steps)
    failing_since: float | None = None
    while True:
        try:
            run = get_run(api, run_id)
            failing_since = None
        except UnreachableError as error:
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since > _PATIENCE_SECONDS:
                raise StillhouseError(f"{error} The run goes on without being watched.") from None
            pause(interval)
            continue
        reporter.report(run)
        if run.state in _ENDED:
            emit("run", "result", values={"kubeflow_state": run.state})
            break
        pause(interval)
    if run.state == "SUCCEEDED":
        return ""
    ending = {"CANCELED": "was stopped", "FAILED": "failed"}.get(run.state, f"ended as {run.state}")
    failed = "; ".join(reporter.failures) or _message(run)
    return f"The run {ending}{failed and f': {failed}'}. The logs of its steps: {run_link(api, run_id)}"


class _Reporter:
    """Turns what Kubeflow says of a run's tasks into the events that a local run's steps write.

    Kubeflow lists a task for each node of its workflow: groups of steps, a driver before each, an executor within each.
    Only the steps are reported; their driver tells why one never began, and their executor whether it was in the cache.
    """

    def __init__(self, steps: LocalSteps) -> None:
        self._steps = steps
        self._said: dict[str, str] = {}
        self._by_title = {title: step_id for step_id, title in steps.titles.items()}
        self.failures: list[str] = []

    def report(self, run: Any) -> None:
        """Say what is new since the last time."""
        tasks = list((run.run_details and run.run_details.task_details) or ())
        failed_drivers = {
            str(task.display_name).removesuffix("-driver"): task
            for task in tasks
            if str(task.display_name).endswith("-driver") and task.state in ("FAILED", "CANCELED")
        }
        for name, task in failed_drivers.items():
            if step_id := self._step_of(name):
                self._fail(
                    step_id, f"it could not be started: {_message(task) or 'see its driver in the user interface'}"
                )
        looped: dict[str, list[Any]] = {}
        for task in sorted(tasks, key=lambda task: _seconds(task.start_time) or float("inf")):
            step_id = self._step_of(str(task.display_name))
            if step_id in self._steps.repeated:
                looped.setdefault(step_id, []).append(task)
            elif step_id:
                self._report(step_id, task, tasks)
        for step_id, turns in looped.items():
            self._report_turns(step_id, turns, tasks)

    def _step_of(self, name: str) -> str:
        """The step's id; empty where the name is of another kind of node."""
        step_id = self._steps.id_of(name)
        return step_id if step_id in self._steps.titles else self._by_title.get(name, "")

    def _report(self, step_id: str, task: Any, tasks: list[Any]) -> None:
        state, said = task.state, self._said.get(step_id)
        if said in ("done", "failed") or state not in ("RUNNING", "SUCCEEDED", "FAILED", "CANCELED"):
            return
        if state == "SUCCEEDED" and _was_cached(task, tasks):
            self._said[step_id] = "done"
            emit(step_id, "cached")
            return
        begin, end = _seconds(task.start_time), _seconds(task.end_time)
        if said is None and (state != "RUNNING" or _has_begun(task, tasks)):
            self._said[step_id] = "running"
            emit(step_id, "started", **({"time": begin} if begin else {}))
        if state == "SUCCEEDED":
            self._said[step_id] = "done"
            emit(step_id, "finished", seconds=round(end - begin, 3) if begin and end else 0.0)
        elif state in ("FAILED", "CANCELED"):
            self._fail(step_id, _message(task) or ("it was stopped" if state == "CANCELED" else "see its log"))

    def _report_turns(self, step_id: str, turns: list[Any], tasks: list[Any]) -> None:
        """A step of a loop begins with its first turn, fails with any, and ends with the last."""
        running = [turn for turn in turns if turn.state == "RUNNING"]
        failed = [turn for turn in turns if turn.state in ("FAILED", "CANCELED")]
        ended = [turn for turn in turns if turn.state == "SUCCEEDED"]
        if failed or len(ended) < self._steps.repeated[step_id]:
            for turn in failed or running:
                self._report(step_id, turn, tasks)
            return
        executed = [turn for turn in ended if not _was_cached(turn, tasks)]
        self._report(step_id, max(executed or ended, key=lambda turn: _seconds(turn.end_time) or 0.0), tasks)

    def _fail(self, step_id: str, message: str) -> None:
        if self._said.get(step_id) != "failed":
            self._said[step_id] = "failed"
            self.failures.append(f"{self._steps.titles[step_id]}: {message}")
            emit(step_id, "failed", message=message, problems=[], exit_code=1)


def _executors(task: Any, tasks: list[Any]) -> list[Any]:
    """The executor within a step: named by the pod, or by its parent."""
    pods = {child.pod_name for child in task.child_tasks or () if child.pod_name}
    return [
        other
        for other in tasks
        if str(other.display_name).startswith("executor")
        and (other.pod_name in pods or (other.parent_task_id and other.parent_task_id == task.task_id))
    ]


def _was_cached(task: Any, tasks: list[Any]) -> bool:
    executors = _executors(task, tasks)
    return bool(executors) and all(executor.state == "SKIPPED" for executor in executors)


def _has_begun(task: Any, tasks: list[Any]) -> bool:
    """Whether a running step has more than its place in the queue, as far as can be told."""
    executors = _executors(task, tasks)
    return not executors or any(executor.state != "PENDING" for executor in executors)


def _seconds(moment: datetime | None) -> float | None:
    """Seconds since the epoch; None for the placeholders of what has not happened."""
    return moment.timestamp() if moment is not None and moment.year > 1970 else None


def _message(task: Any) -> str:
    """What a task or run says of its failure."""
    errors = [task.error, *(status.error for status in reversed(task.state_history or ()))]
    return next((" ".join(error.message.split()) for error in errors if error is not None and error.message), "")
