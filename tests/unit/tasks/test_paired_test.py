"""McNemar's exact test of classification, against values worked out by hand."""

import numpy as np
import pytest

from stillhouse.tasks import get_task


def probabilities(predicted: list[int]) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[predicted]


@pytest.mark.parametrize(
    ("first", "second", "counts", "p"),
    [
        # Labels are all 0. Five rows only the first has right, none only the second: 2 · 0.5⁵.
        ([0, 0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0, 1], (5, 0), 2 / 2**5),
        # Three against one: 2 · (1 + 4) / 2⁴.
        ([0, 0, 0, 1], [1, 1, 1, 0], (3, 1), 2 * 5 / 2**4),
        # No row tells them apart.
        ([0, 1], [0, 1], (0, 0), 1.0),
    ],
)
def test_by_hand(first: list[int], second: list[int], counts: tuple[int, int], p: float) -> None:
    labels = np.zeros(len(first), dtype=np.int64)
    found = get_task("classification").paired_test(probabilities(first), probabilities(second), labels)
    assert found is not None
    assert (found.only_first, found.only_second) == counts
    assert found.p_value == pytest.approx(p)
    assert found.metrics == ("accuracy",)
