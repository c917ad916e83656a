from __future__ import annotations

import numpy as np
import pytest

from stillhouse.evaluation import bootstrap
from stillhouse.evaluation.bootstrap import (
    Interval,
    bootstrap_interval,
    bootstrap_values,
    paired_difference,
    percentile_interval,
    resamples,
)
from stillhouse.tasks import get_task


def rows(count: int = 60, classes: int = 3, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    probabilities = generator.dirichlet(np.ones(classes), count)
    probabilities[np.arange(count), labels] += 0.5
    return (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_percentiles_by_hand() -> None:
    found = percentile_interval(np.arange(101.0))
    assert (found.low, found.high) == pytest.approx((2.5, 97.5))
    found = percentile_interval(np.arange(101.0), level=0.8)
    assert (found.low, found.high) == pytest.approx((10.0, 90.0))
    assert Interval(0.1, 0.2).excludes_zero() and not Interval(-0.1, 0.2).excludes_zero()


def test_accuracy_of_each_draw_is_the_share_of_right_rows_drawn() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], dtype=np.float32)
    labels = np.array([0, 1, 1, 0])  # right, right, wrong, wrong
    drawn = np.concatenate(list(resamples(4, 50, seed=3)))
    values = bootstrap_values(
        lambda p, y: float((p.argmax(1) == y).mean()), probabilities, labels, samples=50, seed=3, name="accuracy"
    )
    assert values.tolist() == [sum(row < 2 for row in draw) / 4 for draw in drawn]


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "mcc"])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_many_draws_at_once_give_what_the_metric_itself_gives(name: str, classes: int) -> None:
    # 12 rows of up to 7 classes: many draws lack a class altogether.
    probabilities, labels = rows(12, classes)
    task = get_task("classification")

    def metric(p: np.ndarray, y: np.ndarray) -> float:
        return task.metrics(p, y)[name]

    fast = bootstrap_values(metric, probabilities, labels, samples=120, seed=1, name=name)
    slow = bootstrap_values(metric, probabilities, labels, samples=120, seed=1)
    np.testing.assert_allclose(fast, slow, atol=1e-12)


def test_a_metric_that_only_shares_the_name_is_called_itself() -> None:
    probabilities, labels = rows()
    assert set(bootstrap_values(lambda p, y: 42.0, probabilities, labels, samples=9, seed=1, name="accuracy")) == {42.0}


def test_draws_do_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resamples(7, 10, seed=1)))
    monkeypatch.setattr(bootstrap, "_BLOCK_ENTRIES", 21)
    parts = list(resamples(7, 10, seed=1))
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    assert np.array_equal(np.concatenate(parts), whole)


def test_interval_holds_the_value_and_narrows_with_more_rows() -> None:
    widths = []
    for count in (50, 800):
        probabilities, labels = rows(count, 2)
        accuracy = float((probabilities.argmax(1) == labels).mean())
        found = bootstrap_interval(
            lambda p, y: float((p.argmax(1) == y).mean()), probabilities, labels, samples=500, seed=1, name="accuracy"
        )
        assert found.low < accuracy < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_a_pair_that_differs_in_one_direction_is_told_apart_where_two_intervals_overlap() -> None:
    # The second is wrong where the first is, and on 6 of 100 rows more.
    labels = np.zeros(100, dtype=np.int64)
    first, second = np.full((100, 2), [0.9, 0.1], dtype=np.float32), np.full((100, 2), [0.9, 0.1], dtype=np.float32)
    first[:20], second[:26] = [0.1, 0.9], [0.1, 0.9]

    def accuracy(p: np.ndarray, y: np.ndarray) -> float:
        return float((p.argmax(1) == y).mean())

    values = [bootstrap_values(accuracy, p, labels, samples=1000, seed=1, name="accuracy") for p in (first, second)]
    assert percentile_interval(values[1]).high > percentile_interval(values[0]).low
    difference = paired_difference(values[0], values[1])
    assert difference.excludes_zero() and 0 < difference.low < 0.06 < difference.high
    with pytest.raises(ValueError, match="cannot pair"):
        paired_difference(values[0], values[1][:10])
