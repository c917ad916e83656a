"""Exact tests on counts of failures, with the standard library alone: the `ops` image has no scipy."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["binomial_tail", "fisher"]


def fisher(ours: int, of: int, theirs: int, among: int) -> float:
    """Fisher's exact test, one-sided: the chance of at least `ours` of all failures among our requests.

    Args:
        ours: failures of ours.
        of: our requests.
        theirs: failures of the others.
        among: their requests.
    """
    failures, requests = ours + theirs, of + among
    if not of or not ours:
        return 1.0
    log_all = _log_choose(requests, of)
    last = min(failures, of)
    return _tail(
        ours, last, failures * of / requests,
        lambda n: _log_choose(failures, n) + _log_choose(requests - failures, of - n) - log_all,
    )  # fmt: skip


def binomial_tail(count: int, of: int, chance: float) -> float:
    """The chance of at least `count` failures in `of` requests that fail with a given chance each."""
    if count <= 0 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0
    hit, miss = math.log(chance), math.log1p(-chance)
    return _tail(count, of, of * chance, lambda n: _log_choose(of, n) + n * hit + (of - n) * miss)


def _tail(first: int, last: int, mean: float, log_term: Callable[[int], float]) -> float:
    """Sum of a distribution's terms from `first` on, each in its logarithm: one far from the mean is 0 as a float."""
    total = 0.0
    for n in range(first, last + 1):
        term = math.exp(log_term(n))
        total += term
        if n > mean and term <= total * 1e-16:
            break
    return min(1.0, total)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
