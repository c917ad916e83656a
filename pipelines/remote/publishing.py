"""Publishing: what a file says of pipelines and schedules is made so on Kubeflow, as often as it is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from stillhouse.errors import InputError, Problem
from stillhouse.pipelines.catalogue import PIPELINES, TRAIN_AND_DEPLOY
from stillhouse.pipelines.checked_yaml import fault_problem, read_mapping, read_text
from stillhouse.pipelines.compiling import cluster_names
from stillhouse.pipelines.remote import runs, schedules
from stillhouse.pipelines.remote.connection import Api
from stillhouse.pipelines.remote.plans import Plan, plan
from stillhouse.pipelines.remote.uploads import Compiled, Uploaded, compile_for, upload

__all__ = ["Publication", "publish", "read_publication"]

_EXAMPLE = "It lists `pipelines` and `schedules`: see stillhouse publish --help."


def _moment(value: Any) -> Any:
    """A date or time as text: YAML reads an unquoted one as more than that."""
    return value.isoformat() if isinstance(value, date) else value


class _Part(BaseModel):
    """A part of the file; a field that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Pipeline(_Part):
    """A pipeline, compiled for one cluster."""

    workflow: str = ""
    """Which one: `train-and-deploy` or `pretrain`; empty takes the first."""
    cluster: str = "gpu"
    """One that comes with this release, or a file beside this one."""
    pipeline: str = ""
    """Its name on Kubeflow; empty derives it from the cluster's."""


class _Schedule(_Pipeline):
    """A schedule, by its name; the rest is what `stillhouse schedule create` takes."""

    name: str
    preset: str = ""
    experiment: str = "stillhouse"
    parameters: dict[str, Any] = {}
    cron: str = ""
    every: str = ""
    time_zone: str = ""
    start: Annotated[str, BeforeValidator(_moment)] = ""
    end: Annotated[str, BeforeValidator(_moment)] = ""
    max_concurrency: int = 1
    catch_up: bool = False
    paused: bool | None = None
    """None leaves it as it is, and starts a new one."""


class _File(_Part):
    """The whole file."""

    cluster_time_zone: str = ""
    """In which Kubeflow's controller reads cron expressions; empty takes KFP_TIME_ZONE, else UTC."""
    pipelines: list[_Pipeline] = []
    schedules: list[_Schedule] = []


_PARTS: dict[str, type[BaseModel]] = {"pipelines": _Pipeline, "schedules": _Schedule}


@dataclass(frozen=True)
class _Wanted:
    """A schedule as it shall be."""

    given: _Schedule
    compiled: Compiled
    plan: Plan


@dataclass(frozen=True)
class Publication:
    """What is to be on Kubeflow, checked."""

    pipelines: dict[str, Compiled]
    """By their names on Kubeflow."""
    schedules: list[_Wanted]


def read_publication(path: str, *, cluster_time_zone: str = "") -> Publication:
    """Read a file, compile its pipelines, and check everything that it says, before anything is sent.

    Args:
        path: of the file. Clusters' files are named relative to it.
        cluster_time_zone: used where the file names none.

    Raises:
        InputError: with everything that is wrong.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise InputError(Problem("FILE", f"{path!r} cannot be read: {error}.", _EXAMPLE)) from None
    name = Path(path).name
    body, found = read_mapping(name, text, _EXAMPLE)
    try:
        file = _File.model_validate(body or {})
    except ValidationError as error:
        found += [fault_problem(name, fault, _fields) for fault in error.errors(include_url=False)]
        raise InputError(found) from None
    if body is not None and not file.pipelines and not file.schedules:
        found.append(Problem(name, "lists nothing.", _EXAMPLE))
    folder, compiled = Path(path).parent, dict[str, Compiled]()
    zone = file.cluster_time_zone or cluster_time_zone
    for number, entry in enumerate(file.pipelines):
        pipeline = PIPELINES.get(entry.workflow, TRAIN_AND_DEPLOY)
        one, problems = compile_for(
            _cluster(folder, entry.cluster),
            name=entry.pipeline,
            settings=[f"{pipeline.source}={pipeline.placeholder}"],
            workflow=entry.workflow,
        )
        found += _at(f"{name}: pipelines.{number}", problems) or _add(compiled, one, f"{name}: pipelines.{number}")
    wanted = []
    for number, given in enumerate(file.schedules):
        where = f"{name}: schedules.{given.name or number}"
        one, problems = compile_for(
            _cluster(folder, given.cluster),
            preset=given.preset,
            name=given.pipeline,
            settings=_settings(given),
            workflow=given.workflow,
            scheduled=True,
        )
        known = {problem.where for problem in problems}
        refused = runs.submission_problems(one.arguments, one.workflow)
        problems += [p for p in refused if p.where not in known]
        times, wrong = _plan(given, zone)
        problems += wrong
        if not given.name.strip():
            problems.append(Problem("name", "is empty.", "Give the schedule a name."))
        elif sum(other.name == given.name for other in file.schedules) > 1:
            problems.append(Problem("name", "is given to another schedule, too.", "Give each a name of its own."))
        found += _at(where, problems) or _add(compiled, one, where)
        if times is not None:
            wanted.append(_Wanted(given, one, times))
    if found:
        raise InputError(dict.fromkeys(found))
    return Publication(compiled, wanted)


def publish(api: Api, publication: Publication, *, owner: str, prune: bool = False) -> dict[str, Any]:
    """Upload what is not the latest version yet, and make, change, pause or resume schedules until they are as wanted.

    Schedules that the file does not name are left alone. With `prune`, those of them that the same owner has published
    are deleted.

    Args:
        api: Kubeflow Pipelines.
        publication: what is to be there.
        owner: who publishes; noted in each schedule.
        prune: delete what the owner no longer lists.

    Raises:
        InputError: another owner has published a schedule of that name; nothing was done.
        StillhouseError: Kubeflow Pipelines refused, or did not answer. Publishing again goes on from there.
    """
    present = schedules.listed(api)
    foreign = [
        Problem(f"schedules.{one.name}", f"belongs to {one.owner!r}.", "Give yours another name, or delete that one.")
        for wanted in publication.schedules
        for one in present
        if one.name == wanted.given.name and one.owner not in ("", owner)
    ]
    if foreign:
        raise InputError(foreign)
    uploaded = {name: upload(api, compiled, latest=True) for name, compiled in publication.pipelines.items()}
    done = [
        _make_so(
            api,
            wanted,
            uploaded[wanted.compiled.name],
            owner,
            [one for one in present if one.name == wanted.given.name],
        )
        for wanted in publication.schedules
    ]
    names = {wanted.given.name for wanted in publication.schedules}
    for one in present:
        if prune and one.owner == owner and one.name not in names:
            schedules.delete(api, one)
            done.append({"action": "deleted", "changes": [], **one.document(parameters=False)})
    pipelines = [
        {"pipeline": one.pipeline, "pipeline_version": one.version, "uploaded": one.new, "id": one.pipeline_id}
        for one in uploaded.values()
    ]
    return {"pipelines": pipelines, "schedules": done}


def _make_so(
    api: Api, wanted: _Wanted, uploaded: Uploaded, owner: str, existing: list[schedules.Schedule]
) -> dict[str, Any]:
    """One schedule: left as it is, paused or resumed, or put anew."""
    given = wanted.given
    what = schedules.Content(
        plan=wanted.plan,
        name=given.name,
        pipeline=uploaded.pipeline,
        pipeline_id=uploaded.pipeline_id,
        experiment_id=runs.experiment_id(api, given.experiment),
        model_name=str(wanted.compiled.arguments["model_name"]),
        parameters=wanted.compiled.changed,
        owner=owner,
    )
    changes = what.differences(existing[0]) if existing else []
    if len(existing) > 1:
        changes.append(f"{len(existing)} of that name")
    if not existing or changes:
        # One that was paused stays so, unless told otherwise.
        paused = given.paused if given.paused is not None else bool(existing) and _all_paused(existing)
        one = schedules.put(api, what, existing, enabled=not paused)
        return {"action": "changed" if existing else "created", "changes": changes, **one.document()}
    (one,) = existing
    action = "unchanged"
    if given.paused is not None and given.paused != (one.state == "paused"):
        action = "paused" if given.paused else "resumed"
        one = schedules.pause(api, one) if given.paused else schedules.resume(api, one)
    return {"action": action, "changes": [], **one.document()}


def _all_paused(existing: Iterable[schedules.Schedule]) -> bool:
    return all(one.state == "paused" for one in existing)


def _plan(given: _Schedule, cluster_time_zone: str) -> tuple[Plan | None, list[Problem]]:
    times, problems = plan(
        cron=given.cron,
        every=given.every,
        time_zone=given.time_zone,
        cluster_time_zone=cluster_time_zone,
        start=given.start,
        end=given.end,
        max_concurrency=given.max_concurrency,
        catch_up=given.catch_up,
    )
    return times, [Problem(*map(_as_keys, (p.where, p.what, p.remedy))) for p in problems]


def _as_keys(text: str) -> str:
    """What names options of a command, for a file in which they are keys."""
    return re.sub(r"--([a-z][a-z-]*)", lambda match: match[1].replace("-", "_"), text)


def _settings(given: _Schedule) -> list[str]:
    """Its parameters as `stillhouse schedule create` has them."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.parameters.items()}
    return [f"{key}={value}" for key, value in texts.items()]


def _cluster(folder: Path, name: str) -> str:
    """A cluster's name, or the path of its file."""
    return name if name in cluster_names() else str(folder / name)


def _add(compiled: dict[str, Compiled], one: Compiled, where: str) -> list[Problem]:
    """Note a pipeline; two of one name must have one content."""
    other = compiled.setdefault(one.name, one)
    if other.text == one.text:
        return []
    remedy = "Name their clusters' files otherwise, or give one a `pipeline`."
    return [Problem(where, f"is another pipeline of the name {one.name!r}.", remedy)]


def _at(where: str, problems: Iterable[Problem]) -> list[Problem]:
    """The same problems, of one entry of the file."""
    options = {
        "--cluster": "cluster",
        "--pipeline": "pipeline",
        "--preset": "preset",
        "--set": "parameters",
        "--workflow": "workflow",
    }
    return [Problem(f"{where}: {options.get(p.where, p.where)}", p.what, _as_keys(p.remedy)) for p in problems]


def _fields(path: list[str]) -> Iterable[str]:
    """The fields beside the one at this path."""
    part = _PARTS.get(path[0], _File) if len(path) > 1 else _File
    return part.model_fields
