"""Cron expressions as Kubeflow Pipelines reads them, in words, and moved from one time zone to another.

Kubeflow Pipelines parses them with robfig/cron 1.2: seconds first, and none of `CRON_TZ=`, `L`, `#`, or 7 for Sunday.
It reads all of them in one time zone: `CRON_SCHEDULE_TIMEZONE` of its controller, which is UTC unless it is set.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

__all__ = ["Cron", "constant_shift"]

_MACROS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_MONTHS = {
    name: number
    for number, name in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
    )
}
_DAYS = {name: number for number, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_DAY_NAMES = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("second", 0, 59, {}),
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
_SEARCHED_DAYS = 366 * 8  # from one 29 February to the next, across a century


@dataclass(frozen=True)
class Cron:
    """A cron expression: second, minute, hour, day of the month, month, day of the week."""

    fields: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Read six fields, five from the minute on, or a name such as `@daily`.

        Raises:
            ValueError: with what is wrong, for people.
        """
        fields = _MACROS.get(text.strip().lower(), text).split()
        if fields and fields[0].startswith("@"):
            raise ValueError(f"{fields[0]} is not one of {', '.join(_MACROS)}")
        if fields and fields[0].upper().startswith(("TZ=", "CRON_TZ=")):
            raise ValueError("the time zone is an option of its own, --time-zone")
        if len(fields) == 5:
            fields = ["0", *fields]
        if len(fields) != 6:
            raise ValueError(f"there are {len(fields)} fields, not 5 (from the minute on) or 6 (from the second on)")
        cron = cls(tuple(fields))
        cron._values()  # raises
        if next(cron._dates(date(2024, 1, 1)), None) is None:
            raise ValueError("no year has such a day")
        return cron

    def __str__(self) -> str:
        """The six fields, as Kubeflow Pipelines takes them."""
        return " ".join(self.fields)

    @property
    def words(self) -> str:
        """The schedule in English where that is simple, else the expression itself."""
        seconds, minutes, hours, days, months, weekdays = self._values()
        if seconds != {0} or len(months) < 12 or (len(hours) * len(minutes) > 4 and len(hours) < 24):
            return f"cron {self}"
        if len(hours) == 24:
            if len(minutes) > 1:
                return f"cron {self}"
            at = f"hourly, {min(minutes)} minutes past" if min(minutes) else "hourly"
        else:
            at = "at " + " and ".join(f"{hour:02}:{minute:02}" for hour in sorted(hours) for minute in sorted(minutes))
        if len(days) == 31 and len(weekdays) == 7:
            return at if len(hours) == 24 else f"daily {at}"
        if len(days) == 31:
            workdays = "Monday to Friday" if weekdays == {1, 2, 3, 4, 5} else ""
            return f"{workdays or ', '.join(_DAY_NAMES[day] for day in sorted(weekdays))} {at}"
        if len(weekdays) == 7 and len(days) <= 3:
            return f"on day {', '.join(map(str, sorted(days)))} of the month {at}"
        return f"cron {self}"

    def following(self, moment: datetime, zone: ZoneInfo) -> datetime | None:
        """When it is due next after `moment`, read in `zone`; times that the clocks skip are passed over."""
        local = moment.astimezone(zone)
        seconds, minutes, hours, *_ = self._values()
        for day in self._dates(local.date()):
            for hour, minute, second in itertools.product(sorted(hours), sorted(minutes), sorted(seconds)):
                due = datetime.combine(day, time(hour, minute, second), zone)
                exists = due.astimezone(timezone.utc).astimezone(zone).replace(tzinfo=None) == due.replace(tzinfo=None)
                if exists and due.timestamp() > moment.timestamp():
                    return due
        return None

    def shifted(self, by: timedelta) -> Cron:
        """The same moments on clocks that are `by` ahead, whole minutes.

        Raises:
            ValueError: one expression cannot say that.
        """
        _, minutes, hours, days, months, weekdays = self._values()
        by_minutes = int(by.total_seconds()) // 60
        if not by_minutes:
            return self
        moved = {divmod(hour * 60 + minute + by_minutes, 1440) for hour in hours for minute in minutes}
        days_over = {over for over, _ in moved}
        new_hours, new_minutes = {rest // 60 for _, rest in moved}, {rest % 60 for _, rest in moved}
        if len(moved) != len(new_hours) * len(new_minutes):
            raise ValueError("there it takes more than one expression")
        if days_over != {0} and (len(days) < 31 or len(months) < 12):
            raise ValueError("there it falls on another day of the month")
        if len(days_over) > 1 and len(weekdays) < 7:
            raise ValueError("there it falls on another day for some of its times")
        over = min(days_over)
        fields = list(self.fields)
        fields[1], fields[2] = _listed(new_minutes, 60), _listed(new_hours, 24)
        if over and len(weekdays) < 7:
            fields[5] = _listed({(day + over) % 7 for day in weekdays}, 7)
        return replace(self, fields=tuple(fields))

    def _values(self) -> list[frozenset[int]]:
        """What each field allows."""
        return [_values(field, *description) for field, description in zip(self.fields, _FIELDS, strict=True)]

    def _dates(self, first: date) -> Iterator[date]:
        """The days from `first` on, for some years, on which it is due."""
        *_, days, months, weekdays = self._values()
        # Where both kinds of day are restricted, either suffices; a field with a star in it, even */2, is not.
        either = not any(set(self.fields[place]) & {"*", "?"} for place in (3, 5))
        for offset in range(_SEARCHED_DAYS):
            day = first + timedelta(days=offset)
            fits = (day.day in days, day.isoweekday() % 7 in weekdays)
            if day.month in months and (any(fits) if either else all(fits)):
                yield day


def constant_shift(zone: ZoneInfo, cluster: ZoneInfo, begin: datetime, end: datetime) -> timedelta | datetime:
    """How far the clocks of `cluster` are ahead of those of `zone`; or the first day on which that changes.

    Args:
        zone: of the schedule.
        cluster: in which the cluster reads cron expressions.
        begin: of the schedule.
        end: of the schedule.
    """

    def shift(moment: datetime) -> timedelta:
        return (moment.astimezone(cluster).utcoffset() or timedelta()) - (
            moment.astimezone(zone).utcoffset() or timedelta()
        )

    first, moment = shift(begin), begin
    while moment < end:
        moment = min(end, moment + timedelta(days=1))
        if shift(moment) != first:
            return moment
    return first


def _values(field: str, title: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    """The values that one field allows."""
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        begin, dash, end = span.partition("-")
        if begin in ("*", "?"):
            first, last = low, high
        else:
            first = _number(begin, title, names)
            last = _number(end, title, names) if dash else high if slash else first
        if slash and not (step.isascii() and step.isdigit() and int(step)):
            raise ValueError(f"{title}: {part!r} has no step from 1 on")
        if not low <= first <= last <= high:
            hint = " (Sunday is 0)" if names is _DAYS and 7 in (first, last) else ""
            raise ValueError(f"{title}: {part!r} does not lie, rising, between {low} and {high}{hint}")
        found.update(range(first, last + 1, int(step) if slash else 1))
    return frozenset(found)


def _number(text: str, title: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{title}: {text!r} is not a number" + (f", nor one of {', '.join(names)}" if names else ""))
    return int(text)


def _listed(values: Iterable[int], count: int) -> str:
    """A field that allows just these of the `count` values from 0."""
    kept = sorted(values)
    return "*" if len(kept) == count else ",".join(map(str, kept))
