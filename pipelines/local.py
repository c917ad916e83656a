"""Run a pipeline on this machine with kfp.local: the same function that is compiled for a cluster."""

import ctypes
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from kfp import local
from kfp.pipeline_spec import pipeline_spec_pb2

from stillhouse.cli.state import EventTail
from stillhouse.errors import InputError, StillhouseError
from stillhouse.models.candidates import PARAMETER, parse_candidates
from stillhouse.pipelines.catalogue import TRAIN_AND_DEPLOY, Pipeline
from stillhouse.progress import EVENTS_VARIABLE, emit
from stillhouse.registry import MlflowRegistry
from stillhouse.registry.tracking import resolve_uri, sqlite_path
from stillhouse.state import TRACKING_VARIABLE, home, tracking_uri

__all__ = ["LocalSteps", "end_with_parent", "fail", "local_defaults", "run_locally"]

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_CACHE_HIT = re.compile(r"Task (\S+) cache hit")
_WAY = re.compile(r"-extras'\] == '(yes|no)'")
"""The condition of what is there twice: with extra candidates, and without."""
_ANY_CANDIDATE = "extra candidate"
"""Stands for the name in the title of a step that is done for each of them."""


class LocalSteps:
    """The pipeline's steps, in order of execution, with the ids that their progress events carry.

    Args:
        spec: the compiled pipeline.
        candidates: names of the extra candidates, in their order: what is in a loop is done once for each.
        together: whether that is one step for all of them. Kubeflow does not tell which is which.
    """

    def __init__(
        self, spec: pipeline_spec_pb2.PipelineSpec, candidates: Sequence[str] = (), *, together: bool = False
    ) -> None:
        self.titles: dict[str, str] = {}
        """Display name by step id."""
        self.repeated: dict[str, int] = {}
        """How often a step is done, for those of a loop that stand for all its turns."""
        self._turns: dict[str, list[str]] = {}
        for task_name, task, looped in _tasks(spec, spec.root.dag, "yes" if candidates else "no"):
            step_id, title = _step_id(task), task.task_info.name
            turns = {step_id: title}
            if looped and together:
                turns = {f"{step_id}-extra": title}
                self.repeated[f"{step_id}-extra"] = len(candidates)
            elif looped:
                turns = {f"{step_id}-{name}": title.replace(_ANY_CANDIDATE, name) for name in candidates}
            self._turns[task_name] = list(turns)
            self.titles |= turns

    def id_of(self, task_name: str) -> str:
        """The step id of a kfp task; of one in a loop, that of its first turn."""
        return next(iter(self.turns_of(task_name)), task_name)

    def turns_of(self, task_name: str) -> list[str]:
        """The step ids of a kfp task, in order: one, or in a loop one for each turn."""
        return self._turns.get(task_name, [task_name])


def _tasks(
    spec: pipeline_spec_pb2.PipelineSpec, dag: pipeline_spec_pb2.DagSpec, extras: str, looped: bool = False
) -> Iterator[tuple[str, pipeline_spec_pb2.PipelineTaskSpec, bool]]:
    """Leaf tasks, each after those that it depends on, and whether they are in a loop; tasks of an exit handler come
    before the handler's own. Of the two ways that a run can take, it is the one for `extras`, `yes` or `no`.
    """
    done: set[str] = set()
    waiting = dict(dag.tasks.items())
    while waiting:
        ready = [name for name, task in waiting.items() if set(task.dependent_tasks) <= done]
        assert ready, "the pipeline's tasks depend on one another in a circle"
        for name in sorted(ready, key=_pipeline_order):
            task = waiting.pop(name)
            done.add(name)
            way = _WAY.search(task.trigger_policy.condition)
            if way and way[1] != extras:
                continue
            component = spec.components[task.component_ref.name]
            inside = looped or task.WhichOneof("iterator") is not None
            if component.HasField("dag"):
                yield from _tasks(spec, component.dag, extras, inside)
            else:
                yield name, task, inside


def _pipeline_order(task_name: str) -> tuple[int, str]:
    """kfp numbers the tasks of one component in the order of the pipeline's text."""
    match = re.search(r"-(\d+)$", task_name)
    return (int(match[1]) if match else 0, task_name)


def _step_id(task: pipeline_spec_pb2.PipelineTaskSpec) -> str:
    """`finetune-teacher` for the task of component `finetune` whose parameter `name` is the constant `teacher`."""
    component = task.component_ref.name.removeprefix("comp-")
    component = re.sub(r"-\d+$", "", component)
    role = ""
    if "name" in task.inputs.parameters:  # a map of messages: reading a key that is not there would add it
        role = task.inputs.parameters["name"].runtime_value.constant.string_value
    return f"{component}-{role}" if role else component


class _CacheHits(logging.Handler):
    """Turns kfp.local's log line of a cache hit, the only sign it gives, into a progress event."""

    def __init__(self, steps: LocalSteps) -> None:
        super().__init__()
        self._steps = steps
        self._cached: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if match := _CACHE_HIT.search(record.getMessage()):
            turns = self._steps.turns_of(match[1])
            if len(turns) > 1:
                # The turns of a loop come in order: those before this one have begun, or were in the cache too.
                over = self._cached | _begun()
                turns = [step_id for step_id in turns if step_id not in over]
            for step_id in turns[:1]:
                self._cached.add(step_id)
                emit(step_id, "cached")


def _begun() -> set[str]:
    """Ids of the steps that have begun, as they say themselves."""
    path = os.environ.get(EVENTS_VARIABLE)
    events = EventTail(Path(path)).read() if path else []
    return {event["step"] for event in events if event["event"] == "started"}


def local_defaults(arguments: Mapping[str, Any], pipeline: Pipeline = TRAIN_AND_DEPLOY) -> dict[str, Any]:
    """Fill in what a laptop has no cluster for: MLflow on SQLite, and a folder for checkpoints."""
    filled = dict(arguments)
    if not filled["tracking_uri"] and not os.environ.get(TRACKING_VARIABLE):
        # A URI from the environment may hold a password, so it stays there, where steps read it too.
        filled["tracking_uri"] = tracking_uri()
    if not filled["checkpoint_dir"]:
        filled["checkpoint_dir"] = str(home() / "checkpoints")
    for name in (*pipeline.sources, *pipeline.checkpoints, *pipeline.stores):
        # Steps run in the same folder as the command, but their cache must not depend on which folder that is.
        value = filled[name]
        if value and "://" not in value:
            filled[name] = str(Path(value).expanduser().absolute())
    if PARAMETER in filled:
        filled[PARAMETER] = [_at_home(item) for item in filled[PARAMETER]]
    return filled


def _at_home(item: Any) -> Any:
    """An extra candidate, its folder named in full where it is one; what cannot be read is left as it is."""
    found, _ = parse_candidates([item])
    if not found or "://" in found[0].checkpoint:
        return item
    return str(replace(found[0], checkpoint=str(Path(found[0].checkpoint).expanduser().absolute())))


def run_locally(arguments: Mapping[str, Any], pipeline: Pipeline = TRAIN_AND_DEPLOY) -> None:
    """Run a pipeline to its end; its steps report their progress as events.

    Raises:
        StillhouseError: a step failed; its own event has said why.
    """
    component = pipeline.component
    candidates, _ = parse_candidates(arguments.get(PARAMETER) or [])
    steps = LocalSteps(component.pipeline_spec, [candidate.name for candidate in candidates])
    emit("run", "plan", steps=[{"id": step_id, "title": title} for step_id, title in steps.titles.items()])
    begin = time.monotonic()
    filled = local_defaults(arguments, pipeline)
    # Processes that first touch a new database at the same time fail, so it is made before any step. A server has its
    # own; the first step asks for it, and tells of everything else that is wrong as well.
    if sqlite_path(resolve_uri(filled["tracking_uri"])) is not None:
        MlflowRegistry(filled["tracking_uri"]).initialise()
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(home() / "artifacts"),
        enable_caching=True,
        cache_root=str(home() / "artifacts" / "cache"),
    )
    logging.getLogger().addHandler(_CacheHits(steps))
    try:
        component(**filled)
    except RuntimeError as error:
        # kfp.local raises RuntimeError for a failed task; anything else is a bug and keeps its traceback.
        raise StillhouseError(str(error)) from None
    emit("run", "finished", seconds=round(time.monotonic() - begin, 3))


def end_with_parent() -> None:
    """End this run, and the step that is being executed, when the process that started it dies, however it dies.

    Left alone, the run would go on unseen, and a repeated command would run into it.
    """
    if sys.platform != "linux" or os.getpgrp() != os.getpid():
        return  # started by hand in a group of other processes, whose end is not ours to bring

    def end(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.killpg(os.getpgrp(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def fail(error: StillhouseError) -> None:
    """Say how the run ended, for those who watch it."""
    problems = [vars(p) for p in error.problems] if isinstance(error, InputError) else []
    emit("run", "failed", message=str(error), problems=problems, exit_code=error.exit_code)
