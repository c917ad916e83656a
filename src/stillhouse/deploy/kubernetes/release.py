"""A Helm release of charts/triton: its revisions, what each served and whether it was proven, and how they change."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.deploy.kubernetes.access import Access
from stillhouse.deploy.kubernetes.diagnosis import diagnosis
from stillhouse.deploy.kubernetes.helm import Helm, HelmError
from stillhouse.deploy.kubernetes.rendering import refusals
from stillhouse.deploy.kubernetes.settings import chart_folder
from stillhouse.errors import InputError, Problem, ServingError

__all__ = ["HelmRelease", "Revision", "SmokeTestFailed"]

_HISTORY = 30
"""Revisions that are kept; a deployment makes one, with a canary two."""
_MARGIN_S = 120.0
"""Seconds that helm may take beyond the time that it waits."""
_SHOWN = 12
_log = logging.getLogger(__name__)


class SmokeTestFailed(ServingError):
    """`helm test` failed: the release does not answer as its package does."""


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One revision of the release."""

    number: int
    at: str
    """ISO 8601, as helm writes it."""
    status: str
    """Helm's word: `deployed`, `superseded`, `failed`, `pending-upgrade`, …"""
    description: str
    chart: str
    """Name and version, such as `triton-0.1.0`."""
    values: Mapping[str, Any]
    """The values that it was given."""
    tested: str = ""
    """How its last test ended: `Succeeded`, `Failed`, `Running` (cut off), or empty where there was none."""
    tested_at: str = ""

    @property
    def model(self) -> str:
        """The served name; empty where the release is of another chart."""
        return str(_part(self.values, "model").get("name") or "")

    @property
    def version(self) -> str:
        """The version on the stable track."""
        return str(_part(self.values, "model").get("version") or "")

    @property
    def canary(self) -> str:
        """The version that is a canary beside it; empty where none is."""
        part = _part(self.values, "canary")
        return str(_part(part, "model").get("version") or "") if part.get("enabled") else ""

    @property
    def canary_weight(self) -> int:
        """Percent of the requests that the canary gets; 0 where there is none."""
        return int(_part(self.values, "canary").get("weight") or 0) if self.canary else 0

    @property
    def by_rollback(self) -> bool:
        """Whether it was made by going back to another one."""
        return self.description.startswith("Rollback to ")

    @property
    def serves(self) -> bool:
        """Whether it came up: it serves, or did until the next one."""
        return self.status in ("deployed", "superseded")


class HelmRelease:
    """The release that serves one model.

    Args:
        helm: for the release's namespace.
        access: the way there.
        name: of the release.
        timeout_s: seconds that a revision may take to become ready.
    """

    def __init__(self, helm: Helm, access: Access, name: str, timeout_s: float) -> None:
        self.name, self.namespace = name, access.namespace
        self.access = access
        self._helm, self._timeout_s = helm, timeout_s
        self._known: dict[int, Revision] = {}
        self.changes = 0
        """Revisions that were asked for here; each is the next number, where helm got so far."""

    @property
    def where(self) -> str:
        """The release's place in the record of what was in production."""
        return f"kubernetes {self.namespace}/{self.name}"

    def newest_first(self, most: int = _HISTORY) -> Iterator[Revision]:
        """The revisions that helm keeps, read one by one; none where there is no such release."""
        try:
            rows = self._helm.read("history", self.name, f"--max={most}")
        except HelmError as error:
            if "release: not found" in error.said:
                return
            raise
        for row in reversed(rows):
            number, status = int(row["revision"]), str(row["status"])
            known = self._known.get(number)
            if known is None or known.status != status or status != "superseded":
                # What was superseded does not change any more; all else is looked at anew.
                known = self._known[number] = self._revision(row)
            yield known

    def last(self) -> Revision | None:
        """The newest revision; None where there is no release."""
        return next(self.newest_first(1), None)

    def _revision(self, row: Mapping[str, Any]) -> Revision:
        number = int(row["revision"])
        entry = self._helm.read("status", self.name, f"--revision={number}")
        runs = [
            hook.get("last_run") or {}
            for hook in entry.get("hooks") or ()
            if "test" in (hook.get("events") or ()) and hook.get("kind") == "Pod"
        ]
        # Of two tests, stable's and the canary's, the worse counts; helm's phases of a test that never ran are empty.
        phases = [str(run.get("phase") or "") for run in runs]
        order = ("Failed", "Running", "Unknown", "", "Succeeded")
        worst = min(phases, key=lambda phase: order.index(phase) if phase in order else 0, default="")
        at = max((str(run.get("completed_at") or "") for run in runs), default="")
        return Revision(
            number=number,
            at=str(row["updated"]),
            status=str(row["status"]),
            description=str(row.get("description") or ""),
            chart=str(row.get("chart") or ""),
            values=entry.get("config") or {},
            tested=worst,
            tested_at=at if worst else "",
        )

    def proven(self, champion: str | None) -> Revision | None:
        """The revision to go back to when the next one fails; None where there is none.

        The newest that passed its test; else the newest with the champion; else the one that helm calls deployed. One
        with a canary never is.
        """
        others: dict[str, Revision] = {}
        for one in self.newest_first():
            if not one.serves or one.canary:
                continue
            if one.tested == "Succeeded":
                return one
            if one.version == champion:
                others.setdefault("champion", one)
            if one.status == "deployed":
                others.setdefault("deployed", one)
            others.setdefault("", one)
        return next((others[kind] for kind in ("champion", "deployed", "") if kind in others), None)

    def recover(self, champion: str | None) -> str:
        """Bring a release in order that a killed run left half-way, or with a canary that nobody watches.

        Returns:
            What was done, in a sentence; empty where nothing was.

        Raises:
            ServingError: it could not be brought in order.
        """
        last = self.last()
        if last is None or (last.status == "deployed" and not last.canary) or last.status == "uninstalled":
            return ""
        left = f"with version {last.canary} as a canary" if last.canary else last.status
        target = self.proven(champion)
        try:
            if target is None:
                self.uninstall()
                done = f"Revision {last.number} of {self.name}, the first, was left {left}; it was uninstalled."
            else:
                self.go_back(target)
                done = (
                    f"Revision {last.number} of {self.name} was left {left}; "
                    f"it went back to revision {target.number}, version {target.version}."
                )
        except HelmError as error:
            what = f"Revision {last.number} of {self.name} was left {left}, and going back failed: {error.said}"
            raise ServingError(what, diagnosis(self.access, self.name)) from None
        _log.warning(done)
        return done

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """Install the release, or upgrade it, and wait until its pods are ready.

        Raises:
            InputError: the values are refused; nothing was changed.
            HelmError: it did not come up.
        """
        chart = chart_folder()
        arguments = ["upgrade", self.name, str(chart), "--install", "--reset-values", f"--history-max={_HISTORY}"]
        try:
            self._wait(*arguments, values=values)
        except HelmError as error:
            if problems := refusals(error.said):
                raise InputError(problems) from None
            raise

    def go_back(self, target: Revision) -> None:
        """Make an earlier revision the newest again, and wait until its pods are ready.

        Raises:
            HelmError: it did not come up.
        """
        self._wait("rollback", self.name, str(target.number), f"--history-max={_HISTORY}")

    def uninstall(self) -> None:
        """Remove the release.

        Raises:
            HelmError: it could not be removed.
        """
        self._wait("uninstall", self.name)

    def test(self) -> None:
        """Ask the release from inside the cluster for the known answers that its values carry.

        Raises:
            SmokeTestFailed: it does not answer as it should; with the last lines of the tests' pods.
        """
        limit = f"--timeout={_seconds(self._timeout_s)}"
        try:
            self._helm.run("test", self.name, "--logs", limit, timeout_s=self._timeout_s + _MARGIN_S)
        except HelmError as error:
            lines = [line for line in error.output.splitlines() if line.strip()]
            logs = lines[next((n for n, line in enumerate(lines) if line.startswith("POD LOGS:")), len(lines)) :]
            raise SmokeTestFailed(f"the smoke test failed: {error.said}", logs[-_SHOWN:]) from None

    def diagnosis(self) -> list[str]:
        """What the cluster says of the release's pods."""
        return diagnosis(self.access, self.name)

    def _wait(self, *arguments: str, values: Mapping[str, Any] | None = None) -> None:
        self.changes += 1
        limits = ("--wait", f"--timeout={_seconds(self._timeout_s)}")
        self._helm.run(*arguments, *limits, values=values, timeout_s=self._timeout_s + _MARGIN_S)

    def refuse_foreign(self, last: Revision | None, model: str) -> None:
        """Refuse a release that serves something else.

        Raises:
            InputError: it does.
        """
        if last is None or last.model == model:
            return
        what = f"serves the model {last.model}" if last.model else f"is of the chart {last.chart}"
        remedy = "Give another namespace, or another name of the release."
        raise InputError(Problem("release", f"{self.name} in {self.namespace} {what}.", remedy))


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _seconds(value: float) -> str:
    return json.dumps(max(1, round(value))) + "s"
