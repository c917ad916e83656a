"""When a schedule is due: read from text, checked, and put into the cluster's time zone."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from stillhouse.errors import Problem
from stillhouse.pipelines.remote.cron import Cron, constant_shift

__all__ = ["Plan", "interval_words", "plan"]

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_LIMIT = 10
"""Kubeflow's, of runs at once."""
_YEARS_CHECKED = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When a schedule is due, checked."""

    words: str
    """For people, in its own time zone."""
    cron: str = ""
    """As given; empty where an interval is."""
    cluster_cron: str = ""
    """The same in the cluster's time zone, with six fields."""
    seconds: int = 0
    """The interval; 0 where a cron expression is given."""
    time_zone: str = "UTC"
    cluster_time_zone: str = "UTC"
    start: datetime | None = None
    end: datetime | None = None
    max_concurrency: int = 1
    """Runs of this schedule at once."""
    catch_up: bool = False
    """Whether times that were missed are made up for, one by one."""


def plan(
    *,
    cron: str = "",
    every: str = "",
    time_zone: str = "",
    cluster_time_zone: str = "",
    start: str = "",
    end: str = "",
    max_concurrency: int = 1,
    catch_up: bool = False,
    now: datetime | None = None,
) -> tuple[Plan | None, list[Problem]]:
    """A schedule's times from what was given as text, and everything wrong with it.

    Args:
        cron: five or six fields, in `time_zone`.
        every: an interval such as `6h`.
        time_zone: IANA name; empty takes the cluster's.
        cluster_time_zone: in which the cluster reads cron expressions; empty takes UTC.
        start: ISO 8601; without an offset, in `time_zone`. Empty starts now.
        end: the same; empty never ends.
        max_concurrency: runs at once.
        catch_up: make up for missed times.
        now: the present.
    """
    now = now or datetime.now(timezone.utc)
    found: list[Problem] = []
    cluster = _zone("--cluster-time-zone", cluster_time_zone or "UTC", found)
    zone = _zone("--time-zone", time_zone or cluster_time_zone or "UTC", found)
    # Whatever the zone, what is no time at all can be told.
    begin = _moment("--start", start, zone or ZoneInfo("UTC"), found)
    finish = _moment("--end", end, zone or ZoneInfo("UTC"), found)
    if finish and finish <= (begin or now):
        found.append(Problem("--end", f"{end} is not after the start.", "Give a later time."))
    if not 1 <= max_concurrency <= _LIMIT:
        what = f"{max_concurrency} is out of range."
        found.append(Problem("--max-concurrency", what, f"Kubeflow takes 1 to {_LIMIT}."))
    if bool(cron) == bool(every):
        what = "both a cron expression and an interval are given." if cron else "nothing says when."
        found.append(Problem("--cron, --every", what, "Give one of them, such as --cron '0 6 * * 1' or --every 6h."))
    seconds, parsed, shifted = 0, None, None
    if every:
        seconds = _interval(every, found)
    if cron:
        try:
            parsed = Cron.parse(cron)
        except ValueError as error:
            found.append(
                Problem("--cron", f"{cron!r}: {error}.", "Write it as '0 6 * * 1-5': at 06:00, Monday to Friday.")
            )
    if parsed and zone and cluster:
        first = max(begin or now, now)
        until = finish or first + timedelta(days=366 * _YEARS_CHECKED)
        shifted = _in_cluster(parsed, zone, cluster, first, until, found)
        if shifted and shifted.following(first, cluster) is None:
            found.append(Problem("--cron", "is never due.", "Correct it."))
    if found or zone is None or cluster is None:
        return None, found
    return Plan(
        words=interval_words(seconds) if every else parsed.words if parsed else "",
        cron=str(parsed or ""),
        cluster_cron=str(shifted or ""),
        seconds=seconds,
        time_zone=zone.key,
        cluster_time_zone=cluster.key,
        start=begin,
        end=finish,
        max_concurrency=max_concurrency,
        catch_up=catch_up,
    ), []


def _zone(option: str, name: str, found: list[Problem]) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        remedy = "Give an IANA name, such as UTC or Europe/Berlin."
        found.append(Problem(option, f"{name!r} is not a time zone that is known here.", remedy))
        return None


def _moment(option: str, text: str, zone: ZoneInfo, found: list[Problem]) -> datetime | None:
    if not text:
        return None
    try:
        # Python 3.10 does not know Z.
        moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
    except ValueError:
        found.append(Problem(option, f"{text!r} is not a date or time.", "Write 2030-01-31 or 2030-01-31T06:00."))
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(timezone.utc)


def _interval(text: str, found: list[Problem]) -> int:
    match = re.fullmatch(r"(\d+)\s*([mhdw])", text.strip().lower())
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= 366 * 86400:
        remedy = "Write a number and m, h, d or w: 30m, 6h, 1d."
        found.append(Problem("--every", f"{text!r} is not an interval from a minute to a year.", remedy))
    return seconds


def interval_words(seconds: int) -> str:
    """An interval in English."""
    names = {604800: "week", 86400: "day", 3600: "hour", 60: "minute"}
    unit = next(unit for unit in (604800, 86400, 3600, 60) if seconds % unit == 0) if seconds % 60 == 0 else 0
    if not unit:
        return f"every {seconds} seconds"
    return f"every {names[unit]}" if seconds == unit else f"every {seconds // unit} {names[unit]}s"


def _in_cluster(
    cron: Cron, zone: ZoneInfo, cluster: ZoneInfo, begin: datetime, end: datetime, found: list[Problem]
) -> Cron | None:
    """The expression for the cluster's clocks."""
    way_out = (
        f"Set CRON_SCHEDULE_TIMEZONE of Kubeflow's controller to {zone.key} and give --cluster-time-zone {zone.key} (see "
        f"docs/operations.md), or write the times in {cluster.key}."
    )
    shift = constant_shift(zone, cluster, begin, end)
    if isinstance(shift, datetime):
        what = (
            f"the cluster reads cron expressions in {cluster.key}, and from {shift.date()} on {zone.key} differs from it "
            f"by another number of hours."
        )
        found.append(Problem("--time-zone", what, way_out))
        return None
    try:
        return cron.shifted(shift)
    except ValueError as error:
        what = f"cannot be written in {cluster.key}, in which the cluster reads cron expressions: {error}."
        found.append(Problem("--cron", what, way_out))
        return None
