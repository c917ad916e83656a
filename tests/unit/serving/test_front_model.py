from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_package import write_tokenizer
from tokenizers import Tokenizer

from stillhouse.tasks.front_models import text_classification
from stillhouse.tasks.front_models.text_classification import (
    CALL_TOKENS,
    TextClassifier,
    TextError,
    TritonPythonModel,
    load,
)

SETTINGS = {"label_names": ["no", "yes"], "max_length": 6, "max_text_bytes": 60, "max_batch_size": 4, "pad_id": 0}


class Recorder:
    """An encoder whose answer tells the row's real tokens: [1 / (1 + sum of ids), rest]."""

    def __init__(self):
        self.calls = []

    def __call__(self, ids, mask):
        assert ids.dtype == mask.dtype == np.int64
        assert ids.shape == mask.shape
        self.calls.append((ids, mask))
        first = 1.0 / (1.0 + (ids * mask).sum(axis=1))
        return np.stack([first, 1 - first], axis=1).astype(np.float32)


@pytest.fixture
def encoder():
    return Recorder()


@pytest.fixture
def classifier(tmp_path, encoder):
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path / "tokenizer.json")))
    return TextClassifier(SETTINGS, tokenizer, encoder)


def test_order_is_kept_over_sub_batches(classifier, encoder):
    texts = [b"good film and plot", b"bad", b"the film was", b"dull", b"", b"great acting", b"a", b"of it", b"not"]
    together, labels = classifier(texts)
    assert together.shape == (9, 2)
    assert together.dtype == np.float32
    assert max(len(ids) for ids, _ in encoder.calls) <= SETTINGS["max_batch_size"]
    assert len(encoder.calls) == 3
    alone = np.concatenate([classifier([text])[0] for text in texts])
    np.testing.assert_array_equal(together, alone)
    assert labels == [SETTINGS["label_names"][row.argmax()] for row in alone]
    assert len(set(map(float, together[:, 0]))) > 5  # else the order could not be seen


def test_no_text_is_no_call(classifier, encoder):
    probabilities, labels = classifier([])
    assert probabilities.shape == (0, 2)
    assert labels == []
    assert not encoder.calls


def test_long_texts_are_cut_and_short_ones_masked(classifier, encoder):
    classifier([b"good " * 10, b"bad"])
    ((ids, mask),) = encoder.calls
    assert ids.shape == (2, 6)
    assert ids[1].tolist()[0] == 2  # [CLS]
    assert ids[1].tolist()[-1] == 3  # [SEP] survives the cut
    assert mask.sum(axis=1).tolist() == [3, 6]
    assert ids[0][3:].tolist() == [0, 0, 0]


def test_padding_is_bounded(tmp_path, encoder):
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path / "tokenizer.json")))
    settings = {**SETTINGS, "max_length": 512, "max_text_bytes": 10_000, "max_batch_size": 64}
    TextClassifier(settings, tokenizer, encoder)([b"good " * 500] * 4 + [b"bad"] * 30)
    assert [ids.shape for ids, _ in encoder.calls] == [(4, 502), (30, 3)]


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_cut_in_the_cheapest_way(tmp_path, encoder, seed):
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path / "tokenizer.json")))
    settings = {**SETTINGS, "max_length": 512, "max_text_bytes": 10_000, "max_batch_size": 5}
    lengths = sorted(np.random.default_rng(seed).integers(3, 90, size=9).tolist())
    TextClassifier(settings, tokenizer, encoder)([b" ".join([b"good"] * (length - 2)) for length in lengths])
    took = sum(CALL_TOKENS + ids.size for ids, _ in encoder.calls)
    ways = (
        [bounds for bounds in itertools.pairwise((0, *cuts, 9))]
        for count in range(9)
        for cuts in itertools.combinations(range(1, 9), count)
    )
    costs = [
        sum(CALL_TOKENS + (end - begin) * lengths[end - 1] for begin, end in way)
        for way in ways
        if max(end - begin for begin, end in way) <= 5
    ]
    assert took == min(costs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"x" * 61, "61 bytes; the limit of this model is 60"),
        (b"ok \xff", "not valid UTF-8"),
        (b"\xed\xa0\x80", "UTF-8"),
    ],
)
def test_refused_before_tokenising(classifier, encoder, text, message):
    with pytest.raises(TextError, match=message):
        classifier([b"fine", text])
    assert not encoder.calls


def test_limit_counts_bytes_and_is_inclusive(classifier):
    assert len(classifier(["ä".encode() * 30])[1]) == 1
    with pytest.raises(TextError, match="62 bytes"):
        classifier(["ä".encode() * 31])


def test_without_onnxruntime_it_says_what_to_do(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(text_classification.__file__).parent))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "encoder_session", raising=False)
    with pytest.raises(RuntimeError, match="encoder_in_front, which needs onnxruntime in the server's Python"):
        TritonPythonModel()._open_encoder({}, {})


def test_load_reads_its_folder(tmp_path, encoder):
    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "settings.json").write_text(json.dumps({**SETTINGS, "label_names": ["nein", "großartig"]}))
    assert load(tmp_path, encoder)([b"film"])[1] == ["großartig"]
