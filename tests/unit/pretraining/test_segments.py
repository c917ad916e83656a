"""Segments of next-sentence and sentence-order prediction, by the papers' rules."""

import numpy as np
import pytest

from stillhouse.pretraining.segments import next_sentence_pairs, sentence_order_pairs, truncate_pair

LIMIT = 20


def uniform(count: int, sentences: int, tokens: int) -> list[list[int]]:
    """Edges of documents of equal sentences, one after the other."""
    size = sentences * tokens
    return [list(range(index * size, (index + 1) * size + 1, tokens)) for index in range(count)]


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def document_of(position: int, documents: list[list[int]]) -> int:
    return next(i for i, edges in enumerate(documents) if edges[0] <= position < edges[-1])


def test_next_sentences_follow_in_the_document_and_false_ones_come_from_another():
    documents = uniform(50, 12, 5)
    pairs = next_sentence_pairs(documents, LIMIT, random(), short=0.0)
    for start, end, second, last, label in pairs.tolist():
        assert start < end and second < last
        first, other = document_of(start, documents), document_of(second, documents)
        if label:
            assert first != other
        else:
            assert first == other and second == end
    # Sentences of 5 tokens fill 20 exactly, so nothing is cut, and pairs are at their full length.
    lengths = pairs[:, 1] - pairs[:, 0] + pairs[:, 3] - pairs[:, 2]
    assert (lengths[pairs[:, 4] == 0] <= LIMIT).all()
    assert (lengths == LIMIT).mean() > 0.7
    assert 0.45 < pairs[:, 4].mean() < 0.65


def test_what_a_false_next_sentence_replaces_is_used_for_the_next_pair():
    documents = uniform(30, 12, 5)
    pairs = next_sentence_pairs(documents, LIMIT, random(), short=0.0)
    for edges in documents:
        covered: list[int] = []
        for start, end, second, last, label in pairs.tolist():
            if edges[0] <= start < edges[-1]:
                covered += range(start, last if not label else end)
                assert label or second == end
        assert covered == list(range(edges[0], edges[-1]))


def test_a_false_segment_begins_at_a_sentence_and_fills_the_rest_of_the_length():
    documents = uniform(40, 12, 5)
    pairs = next_sentence_pairs(documents, LIMIT, random(), short=0.0)
    false = pairs[pairs[:, 4] == 1]
    assert (false[:, 2] % 5 == 0).all()
    wanted = LIMIT - (false[:, 1] - false[:, 0])
    found = false[:, 3] - false[:, 2]
    ends = np.isin(false[:, 3], [edges[-1] for edges in documents])
    assert ((found == wanted) | ends).all()
    assert len({document_of(second, documents) for second in false[:, 2].tolist()}) > 30


def test_order_pairs_are_consecutive_and_half_of_them_swapped():
    documents = uniform(80, 12, 5)
    pairs = sentence_order_pairs(documents, LIMIT, random(), short=0.0)
    for start, end, second, last, label in pairs.tolist():
        assert (last == start) if label else (end == second)
        assert document_of(start, documents) == document_of(second, documents)
    assert 0.4 < pairs[:, 4].mean() < 0.6
    covered = sorted(t for row in pairs.tolist() for a, b in ((row[0], row[1]), (row[2], row[3])) for t in range(a, b))
    assert covered == list(range(80 * 60))


def test_a_single_sentence_is_paired_with_another_document_or_not_at_all():
    documents = [[0, 4], [4, 9]]
    pairs = next_sentence_pairs(documents, LIMIT, random())
    assert pairs.tolist() == [[0, 4, 4, 9, 1], [4, 9, 0, 4, 1]]
    assert len(sentence_order_pairs(documents, LIMIT, random())) == 0
    # In a document of its own there is no other, so no pair can be false, and a lone sentence makes none.
    assert len(next_sentence_pairs([[0, 4]], LIMIT, random())) == 0
    alone = np.concatenate([next_sentence_pairs([[0, 4, 9, 12]], LIMIT, random(seed)) for seed in range(20)])
    assert (alone[:, 4] == 0).all() and len(alone) == 20


def test_a_long_sentence_takes_the_next_one_with_it_for_order():
    pairs = sentence_order_pairs([[0, 50, 53]], LIMIT, random(3), short=0.0)
    assert len(pairs) == 1
    lengths = sorted([pairs[0, 1] - pairs[0, 0], pairs[0, 3] - pairs[0, 2]])
    assert lengths == [3, LIMIT - 3]


@pytest.mark.parametrize("make", [next_sentence_pairs, sentence_order_pairs])
def test_one_pair_in_ten_is_made_for_a_shorter_length(make):
    documents = uniform(10, 2000, 1)
    full = make(documents, LIMIT, random(), short=0.0)
    mixed = make(documents, LIMIT, random())
    for pairs, share in ((full, 0.0), (mixed, 0.1)):
        lengths = pairs[:, 1] - pairs[:, 0] + pairs[:, 3] - pairs[:, 2]
        # Those at a document's end are short in any case; of the drawn lengths from 2 to 20, one in 19 is the full one.
        ends = [edges[-1] for edges in documents]
        inside = lengths[~np.isin(pairs[:, [1, 3]], ends).any(axis=1)]
        assert (inside < LIMIT).mean() == pytest.approx(share * 18 / 19, abs=0.03)


def by_token(first: int, second: int, limit: int) -> tuple[int, int]:
    """Lengths after removing tokens one by one, as the paper's code does."""
    while first + second > limit:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


def test_the_longer_segment_loses_tokens_at_random_ends():
    for first in range(1, 14):
        for second in range(1, 14):
            for limit in (5, 8):
                a, b = truncate_pair((100, 100 + first), (200, 200 + second), limit, random())
                assert (a[1] - a[0], b[1] - b[0]) == by_token(first, second, limit)
                assert 100 <= a[0] <= a[1] <= 100 + first and 200 <= b[0] <= b[1] <= 200 + second
    fronts = [truncate_pair((0, 50), (60, 64), 14, random(seed))[0][0] for seed in range(300)]
    assert np.mean(fronts) == pytest.approx(20, abs=1)  # half of the 40 that go
    assert len(set(fronts)) > 8
