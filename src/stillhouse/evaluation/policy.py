"""Choosing what to serve.

    real-time   the lowest p95 latency at batch 1 among the candidates that keep `min_retention`
    memory      the fewest bytes on disk among the candidates that keep it
    quality     the best quality

Retention is a candidate's quality divided by the FP32 teacher's. What is chosen is always registered; it is deployable
only if it beats every simple baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import InputError, Problem

__all__ = ["POLICIES", "REFERENCE", "Choice", "choose", "retention"]

POLICIES = ("real-time", "memory", "quality")
REFERENCE = ("teacher", "fp32")
"""Name and precision of the candidate that retention is measured against."""

_TOLERANCE = 1e-9

Candidate = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """The chosen candidate."""

    name: str
    precision: str
    reason: str
    """Why it was chosen, in one or two sentences."""
    deployable: bool
    """Whether it may be rolled out: it beats every baseline."""
    undeployable_reason: str = ""
    """Why it may not; empty when it may."""


def retention(quality: float, reference: float) -> float:
    """Quality as a share of the FP32 teacher's.

    MCC, for one, can be zero or negative, where a ratio means nothing: then 1 if the candidate is as good, else 0.
    """
    if reference > 0:
        return quality / reference
    return 1.0 if quality >= reference else 0.0


def _label(candidate: Candidate) -> str:
    return f"The {candidate['precision'].upper()} {candidate['name']}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _size(bytes_: float) -> str:
    return f"{bytes_ / 1e6:.1f} MB" if bytes_ >= 1e5 else f"{bytes_ / 1e3:.1f} kB"


def _latency(candidate: Candidate) -> str:
    return f"{candidate['latency_ms']['p95']:.3g} ms"


def choose(
    candidates: Sequence[Candidate],
    baselines: Sequence[Candidate],
    policy: str,
    min_retention: float,
    metric: str,
) -> Choice:
    """Pick one candidate by policy.

    Args:
        candidates: each with `name`, `precision`, `metrics`, `bytes` and `latency_ms`; the FP32 teacher among them.
        baselines: each with `name` and `metrics`.
        policy: one of `POLICIES`.
        min_retention: least share of the FP32 teacher's quality that `real-time` and `memory` accept.
        metric: the quality metric; higher is better.

    Raises:
        InputError: the policy is unknown, or the FP32 teacher is not among the candidates.
    """
    if policy not in POLICIES:
        raise InputError(Problem("policy", f"{policy!r} is unknown.", f"Choose one of: {', '.join(POLICIES)}."))
    teacher = next((c for c in candidates if (c["name"], c["precision"]) == REFERENCE), None)
    if teacher is None:
        raise InputError(
            Problem(
                "packages",
                "the FP32 teacher, which retention is measured against, is not among the candidates.",
                "Package the teacher, and keep fp32 in `precisions`.",
            )
        )
    title = metric.replace("_", " ")

    def quality(candidate: Candidate) -> float:
        return float(candidate["metrics"][metric])

    def kept(candidate: Candidate) -> float:
        return retention(quality(candidate), quality(teacher))

    def p95(candidate: Candidate) -> float:
        return float(candidate["latency_ms"]["p95"])

    if policy == "quality":
        # Among equals the faster one.
        winner = min(candidates, key=lambda c: (-quality(c), p95(c), c["bytes"]))
        reason = f"{_label(winner)} has the best {title} of {len(candidates)} candidates, {quality(winner):.4f}."
    else:
        fit = [c for c in candidates if kept(c) >= min_retention - _TOLERANCE]
        if policy == "real-time":
            winner = min(fit, key=lambda c: (p95(c), -quality(c), c["bytes"]))
            best, of_teacher = f"the lowest p95 latency at batch 1 ({_latency(winner)})", _latency(teacher)
        else:
            winner = min(fit, key=lambda c: (c["bytes"], -quality(c), p95(c)))
            best, of_teacher = f"the fewest bytes ({_size(winner['bytes'])})", _size(teacher["bytes"])
        need = f"at least {_percent(min_retention)} of the FP32 teacher's {title}"
        if fit == [teacher]:
            closest = max((c for c in candidates if c is not teacher), key=kept, default=None)
            reason = f"No candidate but the teacher itself keeps {need}, so the FP32 teacher is chosen."
            if closest is not None:
                reason += f" {_label(closest)} comes closest with {_percent(kept(closest))}."
        else:
            reason = (
                f"{_label(winner)} has {best} of the {len(fit)} of {len(candidates)} candidates that keep {need}: "
                f"{quality(winner):.4f}, which is {_percent(kept(winner))}"
            )
            reason += "." if winner is teacher else f". The FP32 teacher is at {of_teacher}."
    fault = ""
    strongest = max(baselines, key=quality, default=None)
    if strongest is not None and quality(winner) <= quality(strongest):
        fault = (
            f"{_label(winner)} does not beat the baseline {strongest['name']}: {title} {quality(winner):.4f} against "
            f"{quality(strongest):.4f}. Serving a network that a simple baseline equals is not worth its cost."
        )
    return Choice(winner["name"], winner["precision"], reason, deployable=not fault, undeployable_reason=fault)
