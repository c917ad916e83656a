"""The gate: may the chosen candidate, the challenger, replace the champion?

Both were measured on the same test rows, by turns on the same machine, so every comparison is paired.

    quality     promoted if significantly better
    real-time   promoted if its p95 latency is beyond noise lower, not if higher; if neither, as by quality
    memory      the same with the bytes on disk

By real-time and memory, a champion that no longer keeps `min_retention` of the new FP32 teacher's quality gives way to
a challenger that is significantly better in quality.

Significantly better means that the interval of the paired bootstrap difference lies above zero and, where the task has
a paired test of the very metric, that its p is below the level too. Where the challenger was picked from m candidates
by the figure that is tested, on the very rows, the level is divided by m (Bonferroni): the best of several equals looks
better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.evaluation.bootstrap import (
    Interval,
    bootstrap_values,
    paired_difference,
    percentile_interval,
    resamples,
)
from stillhouse.evaluation.config import EvaluateConfig, resamples_for
from stillhouse.evaluation.table import format_bytes, metric_title
from stillhouse.tasks import PairedTest, Task

__all__ = ["MARGIN", "Champion", "Contender", "Promotion", "latency_ratio", "promotion_gate"]

MARGIN = 0.05
"""Least relative difference of latency or size that counts, however certain."""
_EPSILON = 1e-9


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One side of the comparison."""

    entry: Mapping[str, Any]
    """As in the evaluation: `metrics`, `retention`, `bytes`, `latency_ms` and `package_digest`."""
    probabilities: NDArray[np.float32]
    """[n, c] on the test rows, in the dataset's order of labels."""
    latencies: NDArray[np.float64]
    """[rounds, texts], seconds."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """What is known of the champion."""

    version: str
    """Registered version."""
    measured: Contender | None = None
    incomparable: str = ""
    """Why it could not be measured beside the challenger, in a sentence; empty where it was."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """The decision, and the figures behind it; those are None where nothing was compared."""

    decision: str
    """`promote` or `keep`."""
    reason: str
    """In one or two sentences, with the figures."""
    mode: str
    """`better` or `always`."""
    champion_version: str = ""
    """Empty where no other version was compared with."""
    metric: str = ""
    difference: float | None = None
    """Challenger's less champion's quality."""
    interval: list[float] | None = None
    """Of that difference, by paired bootstrap; it leaves out the share `level`."""
    level: float | None = None
    test: str = ""
    """Name of the task's paired test."""
    p_value: float | None = None
    latency_ratio: float | None = None
    """Challenger's p95 divided by the champion's."""
    latency_interval: list[float] | None = None
    bytes_ratio: float | None = None
    """Challenger's size divided by the champion's."""


def promotion_gate(
    config: EvaluateConfig,
    task: Task,
    *,
    challenger: Contender,
    champion: Champion | None,
    labels: NDArray[np.int64],
    tried: int,
    undeployable: str = "",
) -> Promotion:
    """Decide whether the challenger may be promoted.

    Args:
        config: policy, metric, mode and level.
        task: for the metric and the paired test.
        challenger: the chosen candidate.
        champion: None where no other version is champion.
        labels: [n] of the test rows.
        tried: candidates that the challenger was chosen from.
        undeployable: why the challenger may not be served at all; empty where it may.
    """
    base: dict[str, Any] = {"mode": config.promotion, "champion_version": champion.version if champion else ""}
    verdict: tuple[bool, str] | None = None
    if champion is not None and champion.measured is not None:
        figures, verdict = _compare(config, task, challenger, champion.measured, champion.version, labels, tried)
        base |= figures
    compared = verdict[1] if verdict else ""
    if undeployable:
        return Promotion(decision="keep", reason=_join(undeployable, compared), **base)
    if champion is None:
        reason = "No other version is champion, so there is nothing to compare with."
        return Promotion(decision="promote", reason=reason, **base)
    measured = champion.measured
    if measured is not None and measured.entry["package_digest"] == challenger.entry["package_digest"]:
        reason = f"The chosen package is that of the champion, version {champion.version}, which stays as it is."
        return Promotion(decision="keep", reason=reason, **base)
    if config.promotion == "always":
        compared = compared or f"The champion, version {champion.version}, could not be compared."
        return Promotion(decision="promote", reason=_join("Promotion is set to always.", compared), **base)
    if verdict is None:
        reason = f"The champion, version {champion.version}, cannot be compared: {champion.incomparable}"
        return Promotion(
            decision="keep", reason=_join(reason, "To replace it all the same, set promotion to always."), **base
        )
    return Promotion(decision="promote" if verdict[0] else "keep", reason=compared, **base)


def _join(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


@dataclass(frozen=True)
class _Quality:
    better: bool
    text: str


def _compare(
    config: EvaluateConfig,
    task: Task,
    challenger: Contender,
    champion: Contender,
    version: str,
    labels: NDArray[np.int64],
    tried: int,
) -> tuple[dict[str, Any], tuple[bool, str]]:
    """The figures, and whether the challenger is better by the policy, with the reason."""
    # Only the figure that it was picked by is biased by the picking; sizes have no noise at all.
    corrected = config.significance / max(1, tried)
    level = corrected if config.policy == "quality" else config.significance
    metric = config.quality_metric
    samples = max(config.bootstrap_samples, resamples_for(level))

    def draws(contender: Contender) -> NDArray[np.float64]:
        return bootstrap_values(
            lambda p, y: task.metrics(p, y)[metric],
            contender.probabilities,
            labels,
            samples=samples,
            seed=config.seed,
            name=metric,
        )

    ours, theirs = (contender.entry["metrics"][metric] for contender in (challenger, champion))
    interval = paired_difference(draws(challenger), draws(champion), 1 - level)
    test = task.paired_test(challenger.probabilities, champion.probabilities, labels)
    ratio, spread = latency_ratio(
        challenger.latencies,
        champion.latencies,
        samples=max(config.bootstrap_samples, resamples_for(corrected)),
        seed=config.seed,
        level=corrected,
    )
    sizes = challenger.entry["bytes"], champion.entry["bytes"]
    figures = {
        "metric": metric,
        "difference": ours - theirs,
        "interval": [interval.low, interval.high],
        "level": level,
        "test": test.name if test else "",
        "p_value": test.p_value if test else None,
        "latency_ratio": ratio,
        "latency_interval": [spread.low, spread.high],
        "bytes_ratio": sizes[0] / sizes[1],
    }
    quality = _quality(metric, ours, theirs, interval, level, test, version, len(labels))
    if config.policy == "quality":
        return figures, (quality.better, quality.text)
    kept = champion.entry["retention"]
    if kept < config.min_retention - _EPSILON:
        text = (
            f"The champion, version {version}, no longer keeps {100 * config.min_retention:g}% of the FP32 teacher's "
            f"{metric_title(metric)}, but {100 * kept:.1f}%."
        )
        return figures, (quality.better, _join(text, quality.text))
    if config.policy == "real-time":
        name = "p95 latency"
        shown = [f"{c.entry['latency_ms']['p95']:.3g} ms" for c in (challenger, champion)]
        beyond = not spread.low <= 1 <= spread.high
    else:
        name, ratio, beyond = "size", sizes[0] / sizes[1], True
        shown = [format_bytes(size) for size in sizes]
    text = f"Its {name} is {shown[0]}, against {shown[1]} of the champion (version {version})"
    if beyond and ratio <= 1 - MARGIN:
        return figures, (True, f"{text}: {100 * (1 - ratio):.0f}% less. Both keep the quality that is asked for.")
    if beyond and ratio >= 1 / (1 - MARGIN):
        return figures, (False, f"{text}: {100 * (ratio - 1):.0f}% more.")
    return figures, (quality.better, _join(f"{text}, which is no difference beyond noise.", quality.text))


def _quality(
    metric: str,
    ours: float,
    theirs: float,
    interval: Interval,
    level: float,
    test: PairedTest | None,
    version: str,
    rows: int,
) -> _Quality:
    agrees = test is None or metric not in test.metrics or test.p_value < level
    better = interval.low > 0 and agrees
    if better:
        verdict = "This is significantly better."
    elif interval.high < 0:
        verdict = "This is worse."
    else:
        verdict = "This is not more than noise."
    evidence = f"{100 * (1 - level):.4g}% interval {interval.low:+.4f} to {interval.high:+.4f}"
    if test is not None:
        evidence += f"; {test.name} p = {test.p_value:.2g}"
    text = (
        f"Its {metric_title(metric)} is {ours:.4f}, against {theirs:.4f} of the champion (version {version}) on "
        f"{rows:,} test rows: {ours - theirs:+.4f} ({evidence}). {verdict}"
    )
    return _Quality(better, text)


def latency_ratio(
    first: NDArray[np.float64], second: NDArray[np.float64], *, samples: int, seed: int, level: float
) -> tuple[float, Interval]:
    """First's p95 latency divided by second's, with its paired bootstrap interval over the texts.

    The p95 is that of the report: within a round, then the median over rounds. A text is drawn with all its timings, so
    that a slow moment of the machine, which fell on both, stays paired.

    Args:
        first: [rounds, texts], seconds.
        second: the same texts in the same rounds.
        samples: resamples.
        seed: seed of the draws.
        level: share left out by the interval.
    """

    def p95(latencies: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.median(np.percentile(latencies, 95, axis=-1), axis=0)
        return found

    draws = [p95(first[:, rows]) / p95(second[:, rows]) for rows in resamples(first.shape[1], samples, seed)]
    return float(p95(first) / p95(second)), percentile_interval(np.concatenate(draws), 1 - level)
