"""The classification task's figures against hand-computed ones."""

import numpy as np
import pytest

from stillhouse.errors import InputError
from stillhouse.tasks import get_task
from stillhouse.tasks.classification import calibration_error

TASK = get_task("classification")


def test_calibration_error_by_hand():
    # Two rows at confidence 0.9, one of them right: gap 0.4 on half the rows. Two at 0.6, both right: gap 0.4.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], dtype=np.float32)
    assert calibration_error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.4, abs=1e-6)
    assert calibration_error(np.array([[1.0, 0.0]], dtype=np.float32), np.array([0])) == 0


def test_metrics_and_details_by_hand():
    probabilities = np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    labels = np.array([0, 1, 1, 1])
    found = TASK.metrics(probabilities, labels)
    assert found["accuracy"] == 0.75
    # F1: class 0 2/3, class 1 4/5, class 2 (never there, never predicted) 0.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 3)
    details = TASK.details(probabilities, labels, ["a", "b", "c"])
    assert details["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert details["table"][1] == {
        "label": "b",
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "rows": 3,
    }


def test_baselines_learn_what_they_can():
    train = {"text": ["good fine", "bad awful", "good", "bad", "good nice"], "label": [1, 0, 1, 0, 1]}
    test = {"text": ["good", "bad"], "label": [1, 0]}
    found = TASK.baselines(train, test, 3, 0)
    assert found["majority"].tolist() == [pytest.approx([0.4, 0.6, 0.0])] * 2
    assert found["tf-idf"].argmax(axis=1).tolist() == [1, 0]
    assert found["tf-idf"].shape == (2, 3)


def test_an_unknown_task_is_refused():
    with pytest.raises(InputError, match="classification"):
        get_task("juggling")
