"""Bootstrap intervals: how far a figure would move on another test set of the same size.

Rows are drawn with replacement and the metric is computed again on each draw. With the same seed and row count every
candidate sees the same draws, so that values of two candidates can be subtracted draw by draw.

Shapes: n rows, c labels, r resamples.
Source: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife"; percentile interval, Efron and Tibshirani 1993,
chapter 13; paired differences, Koehn 2004 (W04-3250), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval",
    "bootstrap_interval",
    "bootstrap_values",
    "paired_difference",
    "percentile_interval",
    "resamples",
]

Metric = Callable[[NDArray[np.float32], NDArray[np.int64]], float]
"""A figure of probabilities [n, c] against labels [n]."""

_BLOCK_ENTRIES = 4_000_000
"""Row indices held in memory at once."""


@dataclass(frozen=True)
class Interval:
    """A two-sided interval."""

    low: float
    high: float

    def excludes_zero(self) -> bool:
        """Whether a difference with this interval is told apart from none."""
        return self.low > 0 or self.high < 0


def resamples(rows: int, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks [b, n] of row indices drawn with replacement, `samples` draws in all, the same for the same arguments."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // rows)
    for start in range(0, samples, block):
        yield generator.integers(0, rows, size=(min(block, samples - start), rows))


def percentile_interval(values: NDArray[np.float64], level: float = 0.95) -> Interval:
    """The central `level` share of bootstrap values [r]."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _confusions(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Confusion counts [b, c, c] (true by predicted) of predicted and labels, both [b, n]."""
    draws = len(labels)
    cells = labels * classes + predicted + np.arange(draws)[:, None] * classes**2
    counts = np.bincount(cells.ravel(), minlength=draws * classes**2)
    return counts.reshape(draws, classes, classes).astype(np.float64)


def _accuracy(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    hits: NDArray[np.float64] = np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2))
    return hits


def _macro_f1(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    sizes = confusion.sum(axis=1) + confusion.sum(axis=2)  # predicted and true rows of each class
    # A class that was neither drawn nor predicted counts as 0, as scikit-learn's zero_division=0 does.
    scores: NDArray[np.float64] = np.divide(2 * hits, sizes, out=np.zeros_like(hits), where=sizes > 0).mean(axis=1)
    return scores


def _mcc(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matthews correlation for any number of classes (Gorodkin 2004), 0 where it is undefined."""
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total = true.sum(axis=1)
    covariance = np.trace(confusion, axis1=1, axis2=2) * total - (true * predicted).sum(axis=1)
    spread = np.sqrt((total**2 - (predicted**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1)))
    scores: NDArray[np.float64] = np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0)
    return scores


_FROM_CONFUSION = {"accuracy": _accuracy, "macro_f1": _macro_f1, "mcc": _mcc}
_MAX_CLASSES_FROM_CONFUSION = 64
"""Above it, counting c by c cells for each draw costs more than the metric itself."""


def bootstrap_values(
    metric: Metric,
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    samples: int,
    seed: int,
    name: str = "",
) -> NDArray[np.float64]:
    """The metric on each of `samples` resamples of the rows: values [r].

    Args:
        metric: any figure of (probabilities [n, c], labels [n]).
        probabilities: [n, c].
        labels: [n].
        samples: number of resamples, r.
        seed: seed of the draws.
        name: the metric's name. Accuracy, macro-F1 and MCC are then computed for many draws at once, provided that
            the fast form gives the metric's own value on all rows; any other metric is called once per draw.
    """
    classes = probabilities.shape[1]
    fast = _FROM_CONFUSION.get(name) if classes <= _MAX_CLASSES_FROM_CONFUSION else None
    predicted = probabilities.argmax(axis=1)
    if fast is not None:
        whole = fast(_confusions(predicted[None], labels[None], classes))[0]
        if abs(whole - metric(probabilities, labels)) > 1e-9:
            fast = None
    values = []
    for rows in resamples(len(labels), samples, seed):
        if fast is not None:
            # Fewer draws at a time when the counts, not the rows, are the larger array.
            step = max(1, _BLOCK_ENTRIES // classes**2)
            values += [
                fast(_confusions(predicted[part], labels[part], classes))
                for part in (rows[i : i + step] for i in range(0, len(rows), step))
            ]
        else:
            values.append(np.array([metric(probabilities[draw], labels[draw]) for draw in rows]))
    return np.concatenate(values)


def bootstrap_interval(
    metric: Metric,
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    samples: int,
    seed: int,
    name: str = "",
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a metric; arguments as for `bootstrap_values`."""
    values = bootstrap_values(metric, probabilities, labels, samples=samples, seed=seed, name=name)
    return percentile_interval(values, level)


def paired_difference(first: NDArray[np.float64], second: NDArray[np.float64], level: float = 0.95) -> Interval:
    """Interval of `first - second` from bootstrap values [r] of two candidates over the same draws.

    Raises:
        ValueError: the two have different numbers of draws, so they cannot be paired.
    """
    if first.shape != second.shape:
        raise ValueError(f"cannot pair {first.shape} with {second.shape} bootstrap values")
    return percentile_interval(first - second, level)
