"""Which sentences of which documents make a training sequence, by the rules of the papers.

A shard's documents lie one after the other in a single array of tokens, so a segment, some consecutive sentences of one
document, is a range of it: [start, end). A document is known by its edges, the places where its sentences begin and
where the last one ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHORT", "next_sentence_pairs", "sentence_order_pairs", "truncate_pair"]

SHORT = 0.1
"""Share of the pairs that are made for a random length below the full one, as both papers have it."""

Segment = tuple[int, int]


def next_sentence_pairs(
    documents: Sequence[Sequence[int]], limit: int, random: np.random.Generator, short: float = SHORT
) -> NDArray[np.int64]:
    """Pairs for next-sentence prediction [n, 5]: start and end of both segments, and the label.

    Consecutive sentences of a document are gathered until they reach `limit`, and cut at a random sentence. Half of the
    time the second part is kept (label 0); else sentences from a random place of another document stand in for it
    (label 1), and the second part is used for the next pair. Pairs that are too long lose tokens at random ends.

    Args:
        documents: edges of each document, in the order in which they are to be read.
        limit: tokens of both segments together.
        random: what is drawn.
        short: share of the pairs made for a random length from 2 to `limit`.

    Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1 (task 2) and appendix A.2. A single sentence that is left
    at a document's end can only be paired with another document, so slightly more than half of the labels are 1.
    """
    rows = []
    for index, edges in enumerate(documents):
        start, last = 0, len(edges) - 1
        while start < last:
            target = _target(limit, random, short)
            end = _reach(edges, start, target)
            cut = start + (int(random.integers(1, end - start)) if end - start > 1 else 1)
            first, second, label = (edges[start], edges[cut]), (edges[cut], edges[end]), 0
            if len(documents) > 1 and (cut == end or random.random() < 0.5):
                other = int(random.integers(0, len(documents) - 1))
                elsewhere = documents[other + (other >= index)]
                begin = int(random.integers(0, len(elsewhere) - 1))
                stop = _reach(elsewhere, begin, target - (first[1] - first[0]))
                second, label = (elsewhere[begin], elsewhere[stop]), 1
                end = cut  # what was not used is not lost
            start = end
            if second[1] > second[0]:  # else a lone sentence of the only document
                rows.append(_row(first, second, label, limit, random))
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


def sentence_order_pairs(
    documents: Sequence[Sequence[int]], limit: int, random: np.random.Generator, short: float = SHORT
) -> NDArray[np.int64]:
    """Pairs for sentence-order prediction [n, 5]: as `next_sentence_pairs`, but both segments are always consecutive.

    Half of the time they are swapped (label 1). A pair needs two sentences: where one alone reaches the length, it
    takes the next one too, and a single sentence that is left at a document's end is not used.

    Source: Lan et al. 2019, arXiv:1909.11942, section 3.1. The authors' code pairs single sentences with other
    documents even here; that would teach topics, which the paper argues against.
    """
    rows = []
    for edges in documents:
        start, last = 0, len(edges) - 1
        while start < last - 1:
            end = max(_reach(edges, start, _target(limit, random, short)), start + 2)
            cut = start + int(random.integers(1, end - start))
            first, second, label = (edges[start], edges[cut]), (edges[cut], edges[end]), 0
            if random.random() < 0.5:
                first, second, label = second, first, 1
            rows.append(_row(first, second, label, limit, random))
            start = end
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


def truncate_pair(first: Segment, second: Segment, limit: int, random: np.random.Generator) -> tuple[Segment, Segment]:
    """Both segments with at most `limit` tokens together: the longer one loses tokens, each at a random end.

    Source: the code released with Devlin et al. 2018; the result is drawn as if token after token were removed.
    """
    lengths = first[1] - first[0], second[1] - second[0]
    if sum(lengths) <= limit:
        return first, second
    kept = min(lengths[0], max(limit - lengths[1], -(-limit // 2)))
    return _trim(first, lengths[0] - kept, random), _trim(second, lengths[1] - (limit - kept), random)


def _trim(segment: Segment, count: int, random: np.random.Generator) -> Segment:
    front = int(random.binomial(count, 0.5))
    return segment[0] + front, segment[1] - (count - front)


def _target(limit: int, random: np.random.Generator, short: float) -> int:
    return int(random.integers(2, limit + 1)) if random.random() < short else limit


def _reach(edges: Sequence[int], start: int, length: int) -> int:
    """The first sentence after `start` with which the tokens from there reach `length`; the last one if none does."""
    end = start + 1
    while end < len(edges) - 1 and edges[end] - edges[start] < length:
        end += 1
    return end


def _row(first: Segment, second: Segment, label: int, limit: int, random: np.random.Generator) -> list[int]:
    first, second = truncate_pair(first, second, limit, random)
    return [*first, *second, label]
