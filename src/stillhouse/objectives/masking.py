"""Masking tokens for the masked language model.

Shapes: b sequences in a batch, s tokens, v tokens in the vocabulary, r of them ordinary ones.

Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1 (task 1) and appendix A.1; drawn anew each time a sequence is
seen, as in Liu et al. 2019, arXiv:1907.11692, section 4.1. Whole words are those of the authors' later release of BERT,
and runs of words those of Lan et al. 2019, arXiv:1909.11942, section 4.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose_positions", "mask_tokens"]

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become [MASK], and that become another token; the rest stay as they are, so that
the model cannot tell which tokens it will be asked for, and keeps a good representation of all."""


def choose_positions(
    candidates: NDArray[np.bool_],
    probability: float,
    random: np.random.Generator,
    continues: NDArray[np.bool_] | None = None,
    longest: int = 1,
) -> NDArray[np.bool_]:
    """Which tokens [b, s] are to be predicted: in each row `probability` of the candidates, rounded, and at least one.

    Args:
        candidates: [b, s], true for tokens that may be chosen: neither padding nor special.
        probability: share of a row's candidates.
        random: what is drawn; equal generators give equal choices.
        continues: [b, s], true for tokens that continue the word of the token before them. With it, words are chosen
            whole, in random order, each that still fits into the row's number (and one where none does).
        longest: words that are chosen together at most, one behind the other; of n words with a probability of
            (1/n) / (1/1 + … + 1/longest), and fewer where fewer are left or fit.

    Raises:
        ValueError: there are runs of words to choose, and no `continues`.
    """
    if longest > 1 and continues is None:
        raise ValueError("runs are of words: give continues")
    counts = candidates.sum(axis=1)
    wanted = np.where(counts > 0, np.maximum(1, np.rint(probability * counts).astype(np.int64)), 0)
    keys = random.random(candidates.shape)
    if continues is not None:
        runs = np.arange(1, longest + 1)
        shares = 1 / runs / (1 / runs).sum()
        lengths = random.choice(runs, candidates.shape, p=shares) if longest > 1 else np.ones_like(keys, dtype=np.int64)
        return _choose_words(candidates, continues, wanted, keys, lengths)
    keys[~candidates] = 2.0
    # The greatest key that is still chosen; rows without candidates have none below 2.
    last = np.sort(keys, axis=1)[np.arange(len(keys)), np.maximum(wanted, 1) - 1]
    chosen: NDArray[np.bool_] = candidates & (keys <= last[:, None])
    return chosen


def mask_tokens(
    ids: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    mask_id: int,
    ordinary: NDArray[np.int64],
    random: np.random.Generator,
) -> NDArray[np.int64]:
    """Token ids [b, s] as the model is to see them: of the chosen 80% masked, 10% another token, 10% left alone.

    Args:
        ids: [b, s].
        chosen: [b, s], from `choose_positions`.
        mask_id: id of [MASK].
        ordinary: [r], the ids that a random token is drawn from: the vocabulary without special tokens.
        random: what is drawn.
    """
    draws = random.random(ids.shape)
    replacements = ordinary[random.integers(0, len(ordinary), ids.shape)]
    masked = np.where(chosen & (draws < MASKED), mask_id, ids)
    return np.where(chosen & (draws >= MASKED) & (draws < MASKED + RANDOM), replacements, masked)


def _choose_words(
    candidates: NDArray[np.bool_],
    continues: NDArray[np.bool_],
    wanted: NDArray[np.int64],
    keys: NDArray[np.float64],
    lengths: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whole words, those with the least keys first: `lengths` [b, s] says how many from each on, at most."""
    before = np.zeros_like(candidates)
    before[:, 1:] = candidates[:, :-1]
    starts = candidates & ~(continues & before)
    words = np.cumsum(starts, axis=1) - 1
    chosen = np.zeros_like(candidates)
    for row in range(len(candidates)):
        sizes = np.bincount(words[row][candidates[row]])
        follows = before[row][starts[row]]  # the word stands directly behind another
        most = lengths[row][starts[row]]
        order = np.argsort(keys[row][starts[row]], kind="stable")
        taken = np.zeros(len(sizes), dtype=bool)
        left = int(wanted[row])
        for first in order:
            for word in range(first, min(first + most[first], len(sizes))):
                if taken[word] or sizes[word] > left or (word > first and not follows[word]):
                    break
                taken[word] = True
                left -= int(sizes[word])
            if not left:
                break
        if len(order) and not taken.any():
            taken[order[0]] = True
        chosen[row][candidates[row]] = taken[words[row][candidates[row]]]
    return chosen
