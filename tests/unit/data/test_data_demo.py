from __future__ import annotations

import itertools

import numpy as np
import pytest

from stillhouse.data.dataset import read_split
from stillhouse.data.demo import LABELS, NOISE, _review, reviews
from stillhouse.data.prepare import inspect_source, prepare_dataset


def test_same_arguments_same_rows_and_fewer_rows_are_the_first_ones():
    many = list(reviews(200, 3))
    assert many == list(reviews(200, 3))
    assert list(reviews(50, 3)) == many[:50]
    assert many != list(reviews(200, 4))
    assert many[:3] == GOLDEN


GOLDEN = [
    ("The display felt shoddy, yet the charger is surprisingly superb.", "positive"),
    ("The motor turned out dreadful, even though nobody could call the packaging frustrating.", "negative"),
    ("The strap is truly superb in the end.", "positive"),
]


def test_rows_are_short_balanced_and_nearly_all_different():
    rows = list(reviews(5500, 0))
    lengths = [len(text.split()) for text, _ in rows]
    assert 10 < np.mean(lengths) < 18 and max(lengths) < 40
    assert 0.45 < np.mean([label == LABELS[1] for _, label in rows]) < 0.55
    assert len({text for text, _ in rows}) > 5400
    for part in (" but ", "lthough ", "nobody could call", "The weather was"):
        assert sum(part in text for text, _ in rows) > 50


def test_two_labels_in_a_hundred_are_wrong():
    from random import Random

    rng = Random(0)
    flipped = 0
    for _, label in reviews(20_000, 0):
        positive = rng.random() < 0.5
        _review(rng, positive)
        flipped += label != LABELS[positive]
        rng.random()
    assert abs(flipped / 20_000 - NOISE) < 0.004


def test_demo_passes_through_the_normal_splitting(tmp_path, config_for):
    config = config_for("demo://reviews?rows=300&seed=1")
    report = inspect_source(config)
    assert report.problems == () and report.label_names == ("negative", "positive")
    manifest = prepare_dataset(config, tmp_path / "out", fingerprint=report.fingerprint)
    assert 290 <= sum(split.rows for split in manifest.splits.values()) <= 300
    others = ["demo://reviews?rows=300&seed=2", "demo://reviews?rows=301&seed=1"]
    prints = {report.fingerprint, *(inspect_source(config_for(other)).fingerprint for other in others)}
    assert len(prints) == 3


def test_wrong_demo_locations_and_columns(config_for):
    for wrong in ("demo://reviews?rows=many", "demo://other"):
        assert [problem.where for problem in inspect_source(config_for(wrong)).problems] == ["data"]
    report = inspect_source(config_for("demo://reviews?rows=100", text="sentence"))
    assert [problem.where for problem in report.problems] == ["text_column"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_word_counts_do_not_tell_the_label(tmp_path, config_for, seed):
    from stillhouse.tasks.classification import Classification

    config = config_for(f"demo://reviews?seed={seed}", test_fraction=0.2)
    prepare_dataset(config, tmp_path / "out", fingerprint="")
    train, test = (read_split(tmp_path / "out", split) for split in ("train", "test"))
    truth = np.array(test["label"])
    figures = Classification().baselines(train, test, 2, seed)
    accuracy = float((figures["tf-idf"].argmax(axis=1) == truth).mean())
    # Above chance, so that the words are not noise either.
    assert 0.6 < accuracy < 0.85


def test_no_review_is_malformed():
    for text, _ in itertools.islice(reviews(2000, 5), 2000):
        assert "{" not in text and "  " not in text and text[0].isupper() and text.endswith(".")
