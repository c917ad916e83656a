"""Schedules: recurring runs on Kubeflow that always run the latest version of the pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import kfp_server_api

from stillhouse import __version__
from stillhouse.errors import InputError, Problem, StillhouseError
from stillhouse.pipelines.remote.connection import Api
from stillhouse.pipelines.remote.cron import Cron
from stillhouse.pipelines.remote.plans import Plan, interval_words
from stillhouse.redaction import redacted

__all__ = ["Content", "Schedule", "delete", "find", "listed", "pause", "put", "resume", "with_last_run"]

_MARK = "stillhouse schedule"
"""First words of a description by which our schedules are known from others."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule as Kubeflow has it."""

    name: str
    id: str
    state: str
    """`active`, `paused` or `unknown`."""
    trigger: str
    """In words."""
    cron: str
    """As the cluster reads it; empty where an interval is."""
    interval_seconds: int
    """0 where a cron expression is."""
    time_zone: str
    """Of the words."""
    start: str | None
    end: str | None
    next: str | None
    """ISO 8601, UTC, worked out here; None where it is paused, over, or counted from a run that is not known."""
    last: str | None
    """When the last run was started, where that was asked for."""
    last_state: str | None
    max_concurrency: int
    catch_up: bool
    model_name: str
    pipeline: str
    pipeline_id: str
    experiment_id: str
    parameters: dict[str, Any] = field(default_factory=dict)
    """What differs from the defaults of the latest version."""
    owner: str = ""
    """Who published it; empty where a person made it."""
    link: str = ""

    def document(self, *, parameters: bool = True) -> dict[str, Any]:
        """For `--json`."""
        body = {**asdict(self), "parameters": redacted(self.parameters)}
        if not parameters:
            del body["parameters"]
        return body


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a schedule is to be: when it is due, and what it runs, always in the pipeline's latest version."""

    plan: Plan
    name: str
    """Of the schedule; Kubeflow itself takes one name many times."""
    pipeline: str
    """The pipeline's name."""
    pipeline_id: str
    experiment_id: str
    """Of the experiment of its runs."""
    model_name: str
    """Of the model that it trains."""
    parameters: Mapping[str, Any]
    """Values that differ from the pipeline's defaults."""
    owner: str = ""
    """Who publishes it; empty where a person made it."""

    def differences(self, there: Schedule) -> list[str]:
        """In what a schedule on Kubeflow is another than this one; empty where it is the same."""
        times = self.plan
        pairs = {
            "cron": (times.cluster_cron, there.cron),
            "every": (times.seconds, there.interval_seconds),
            "time_zone": (times.time_zone, there.time_zone),
            "start": (_iso(times.start), there.start),
            "end": (_iso(times.end), there.end),
            "max_concurrency": (times.max_concurrency, there.max_concurrency),
            "catch_up": (times.catch_up, there.catch_up),
            "pipeline": (self.pipeline_id, there.pipeline_id),
            "experiment": (self.experiment_id, there.experiment_id),
            "owner": (self.owner, there.owner),
        }
        changed = [key for key, (wanted, present) in pairs.items() if wanted != present]
        names = sorted({*self.parameters, *there.parameters})
        absent = object()
        return changed + [
            f"parameters.{name}"
            for name in names
            if self.parameters.get(name, absent) != there.parameters.get(name, absent)
        ]


def put(api: Api, content: Content, existing: Sequence[Schedule], *, enabled: bool = True) -> Schedule:
    """Make a schedule, and then delete those whose place it takes.

    Args:
        api: Kubeflow Pipelines.
        content: what it is to be.
        existing: those whose place it takes.
        enabled: whether it begins at once.

    Raises:
        StillhouseError: Kubeflow Pipelines refused; the message says so where both the new and an old one are there.
    """
    created = _create(api, content, enabled=enabled)
    for old in existing:
        try:
            delete(api, old)
        except StillhouseError as error:
            left = f"The new schedule {created.id} is in place, but the old one {old.id} too: delete it."
            raise StillhouseError(f"{error} {left}") from None
    return created


def _create(api: Api, content: Content, *, enabled: bool) -> Schedule:
    plan = content.plan
    if plan.cluster_cron:
        trigger = kfp_server_api.V2beta1Trigger(
            cron_schedule=kfp_server_api.V2beta1CronSchedule(
                start_time=plan.start, end_time=plan.end, cron=plan.cluster_cron
            )
        )
    else:
        trigger = kfp_server_api.V2beta1Trigger(
            periodic_schedule=kfp_server_api.V2beta1PeriodicSchedule(
                start_time=plan.start, end_time=plan.end, interval_second=str(plan.seconds)
            )
        )
    notes = {
        _MARK: __version__,
        "when": plan.words,
        "time zone": plan.time_zone,
        "cluster's time zone": plan.cluster_time_zone,
        "model": content.model_name,
        "pipeline": f"{content.pipeline}, the latest version",
    }
    if content.owner:
        notes["published by"] = content.owner
    mode = kfp_server_api.RecurringRunMode
    body = kfp_server_api.V2beta1RecurringRun(
        display_name=content.name,
        description="\n".join(f"{key}: {value}" for key, value in notes.items()),
        experiment_id=content.experiment_id,
        # No version: each run takes the latest.
        pipeline_version_reference=kfp_server_api.V2beta1PipelineVersionReference(pipeline_id=content.pipeline_id),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(content.parameters)),
        trigger=trigger,
        mode=mode.ENABLE if enabled else mode.DISABLE,
        max_concurrency=str(plan.max_concurrency),
        no_catchup=not plan.catch_up,
        **api.namespace,
    )
    method = api.recurring_runs.recurring_run_service_create_recurring_run
    return _schedule(api, api.call("create the schedule", method, body))


def listed(api: Api) -> list[Schedule]:
    """Stillhouse's schedules in the namespace, by name."""
    method = api.recurring_runs.recurring_run_service_list_recurring_runs
    entries = api.pages("list the schedules", method, "recurring_runs", **api.namespace)
    found = [_schedule(api, entry) for entry in entries if (entry.description or "").startswith(f"{_MARK}:")]
    return sorted(found, key=lambda schedule: (schedule.name, schedule.id))


def find(api: Api, name: str) -> Schedule:
    """The schedule of that name or id.

    Raises:
        InputError: none, or more than one, has it.
    """
    everything = listed(api)
    found = [one for one in everything if one.id == name] or [one for one in everything if one.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(one.id for one in found)
        raise InputError(Problem("NAME", f"{len(found)} schedules are called {name!r}.", f"Give an id: {ids}."))
    known = ", ".join(one.name for one in everything) or "none"
    raise InputError(Problem("NAME", f"there is no schedule {name!r}.", f"There are: {known}."))


def pause(api: Api, schedule: Schedule) -> Schedule:
    """Keep it from starting runs; those that go on are left alone."""
    api.call("pause the schedule", api.recurring_runs.recurring_run_service_disable_recurring_run, schedule.id)
    return _again(api, schedule)


def resume(api: Api, schedule: Schedule) -> Schedule:
    """Let it start runs again."""
    api.call("resume the schedule", api.recurring_runs.recurring_run_service_enable_recurring_run, schedule.id)
    return _again(api, schedule)


def delete(api: Api, schedule: Schedule) -> None:
    """Remove it; runs that it has started stay."""
    api.call("delete the schedule", api.recurring_runs.recurring_run_service_delete_recurring_run, schedule.id)


def with_last_run(api: Api, schedule: Schedule) -> Schedule:
    """The same, with its last run looked up among those of its experiment, the newest first."""
    runs = api.call(
        "list the runs", api.runs.run_service_list_runs, experiment_id=schedule.experiment_id, page_size=100,
        sort_by="created_at desc", **api.namespace,
    ).runs  # fmt: skip
    last = next((run for run in runs or () if run.recurring_run_id == schedule.id), None)
    if last is None:
        return schedule
    due = schedule.next
    if schedule.interval_seconds and schedule.state == "active":
        due = _iso((last.scheduled_at or last.created_at) + timedelta(seconds=schedule.interval_seconds))
    return replace(schedule, last=_iso(last.created_at), last_state=str(last.state or "").lower(), next=due)


def _again(api: Api, schedule: Schedule) -> Schedule:
    method = api.recurring_runs.recurring_run_service_get_recurring_run
    return _schedule(api, api.call("read the schedule", method, schedule.id))


def _schedule(api: Api, entry: Any) -> Schedule:
    """From Kubeflow's form."""
    if not entry.recurring_run_id:
        raise StillhouseError("Kubeflow Pipelines answered with a schedule that has no id.")
    notes = dict(line.split(": ", 1) for line in (entry.description or "").splitlines() if ": " in line)
    parameters = dict((entry.runtime_config and entry.runtime_config.parameters) or {})
    cron = entry.trigger.cron_schedule if entry.trigger else None
    periodic = entry.trigger.periodic_schedule if entry.trigger else None
    seconds = int(periodic.interval_second) if periodic and periodic.interval_second else 0
    limits = cron or periodic
    state = {"ENABLED": "active", "DISABLED": "paused"}.get(str(entry.status), "unknown")
    text = cron.cron if cron and cron.cron else ""
    words = notes.get("when") or (interval_words(seconds) if seconds else f"cron {text}")
    return Schedule(
        name=entry.display_name,
        id=entry.recurring_run_id,
        state=state,
        trigger=words,
        cron=text,
        interval_seconds=seconds,
        time_zone=notes.get("time zone", ""),
        start=_iso(limits and limits.start_time),
        end=_iso(limits and limits.end_time),
        next=_next(state, text, seconds, limits, entry.created_at, notes.get("cluster's time zone", "")),
        last=None,
        last_state=None,
        max_concurrency=int(entry.max_concurrency or 1),
        catch_up=not entry.no_catchup,
        model_name=str(parameters.get("model_name") or notes.get("model", "")),
        pipeline=notes.get("pipeline", "").split(",")[0],
        pipeline_id=str((entry.pipeline_version_reference and entry.pipeline_version_reference.pipeline_id) or ""),
        experiment_id=str(entry.experiment_id or ""),
        parameters=parameters,
        owner=notes.get("published by", ""),
        link=api.connection.link(f"recurringrun/details/{entry.recurring_run_id}"),
    )


def _next(state: str, cron: str, seconds: int, limits: Any, created: datetime | None, zone: str) -> str | None:
    now = datetime.now(timezone.utc)
    if state != "active" or limits is None:
        return None
    begin = limits.start_time if limits.start_time and limits.start_time > now else None
    if seconds:
        # The first run comes one interval after the start; later ones count from runs that are not known here.
        first = (begin or limits.start_time or created or now) + timedelta(seconds=seconds)
        due: datetime | None = first if first > now else None
    else:
        try:
            due = Cron.parse(cron).following(begin or now, ZoneInfo(zone or "UTC"))
        except (ValueError, ZoneInfoNotFoundError):
            return None
    if due is None or (limits.end_time and due > limits.end_time):
        return None
    return _iso(due)


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds") if moment and moment.year > 1970 else None
