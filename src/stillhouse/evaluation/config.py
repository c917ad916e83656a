"""What the evaluate step is told."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.errors import Problem
from stillhouse.evaluation.policy import POLICIES
from stillhouse.tasks import Task

__all__ = ["PROMOTIONS", "EvaluateConfig"]

PROMOTIONS = ("better", "always")
_TAIL = 2.5
"""Resamples that each tail of an interval holds at least; below it, the interval's ends are the extremes."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How candidates are compared and chosen."""

    policy: str = "real-time"
    """`real-time`, `memory` or `quality`."""
    min_retention: float = 0.97
    """Least share of the FP32 teacher's quality that a candidate must keep, above 0 and at most 1."""
    quality_metric: str = "accuracy"
    """Metric that retention and the policies are computed from; one of the task's."""
    bootstrap_samples: int = 1000
    """Resamples for the intervals."""
    promotion: str = "better"
    """When the chosen candidate may replace the champion: `better`, by policy and significantly; or `always`."""
    significance: float = 0.05
    """Level of the tests against the champion: chance of taking equals for different, above 0 and below 1."""
    champion_version: str = ""
    """Registered version of the champion that is measured too; empty where there is none."""
    seed: int = 42
    """Seed of the resamples, of the texts timed and of the baselines."""
    latency_samples: int = 200
    """Test texts answered one at a time to measure latency, in each of 3 rounds."""
    throughput_rows: int = 512
    """Test rows answered in batches of 32 to measure throughput, over all rounds."""
    threads: int = 0
    """Threads of one call, the same for all candidates; 0 takes every core that this process may use."""

    def problems(self, task: Task | None = None) -> list[Problem]:
        """Everything wrong with the values; with a task, the metric is checked too."""
        found = []
        for name, value, known in (("policy", self.policy, POLICIES), ("promotion", self.promotion, PROMOTIONS)):
            if value not in known:
                found.append(Problem(name, f"{value!r} is unknown.", f"Choose one of: {', '.join(known)}."))
        if not 0 < self.min_retention <= 1:
            found.append(
                Problem("min_retention", f"{self.min_retention} is not a share.", "Give a number above 0, at most 1.")
            )
        if task is not None and self.quality_metric not in task.metric_names:
            names = ", ".join(task.metric_names)
            what = f"{self.quality_metric!r} is not a metric of {task.name}."
            found.append(Problem("quality_metric", what, f"Choose one of: {names}."))
        # Below 100 resamples the 2.5% tails hold two values or fewer.
        for name, least in (
            ("bootstrap_samples", 100),
            ("latency_samples", 10),
            ("throughput_rows", 1),
            ("threads", 0),
        ):
            if getattr(self, name) < least:
                found.append(Problem(name, f"{getattr(self, name)} is too small.", f"Give {least} or more."))
        if not 0 < self.significance < 1:
            what = f"{self.significance} is not a level."
            found.append(Problem("significance", what, "Give a number between 0 and 1, such as 0.05."))
        elif 100 <= self.bootstrap_samples < (least := resamples_for(self.significance)):
            what = f"{self.bootstrap_samples} are too few for a significance of {self.significance:g}."
            found.append(Problem("bootstrap_samples", what, f"Give {least} or more, or raise `significance`."))
        return found


def resamples_for(level: float) -> int:
    """The fewest resamples from which a two-sided interval that leaves out `level` can be read."""
    return -int(-2 * _TAIL // level)
