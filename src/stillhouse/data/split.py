"""Which row goes into which split: stratified, free of leaks, and the same on every machine. Pure NumPy.

All decisions are made from a row's text hash, its label and the seed. A row in a split that was made depends on neither
the machine nor the order of the rows in the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DROPPED", "SPLITS", "Assignment", "allocate", "assign_rows", "mix"]

SPLITS = ("train", "validation", "test")
DROPPED = 255
"""Split code of a row that goes nowhere; others are indices into `SPLITS`."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Assignment:
    """Where the rows of each source go."""

    codes: dict[str, NDArray[np.uint8]]
    """By the split whose location the source is: [n] split code of each row."""
    duplicates_removed: int
    counts: dict[str, NDArray[np.int64]]
    """By split: [c] rows per label id."""


def mix(values: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """A pseudo-random permutation of 64-bit numbers, another for each salt (the SplitMix64 finaliser).

    Source: Steele et al. 2014, "Fast splittable pseudorandom number generators", section 4.
    """
    mixed: NDArray[np.uint64] = values + np.uint64((salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def allocate(counts: NDArray[np.int64], total: int, *, most: NDArray[np.int64], least: int = 0) -> NDArray[np.int64]:
    """Share out `total` rows over classes in proportion to `counts` [c], by largest remainder.

    No class gets more than its `most` [c], and each non-empty one at least `least` where `total` allows it; so fewer
    than `total` may be shared out where `most` binds.
    """
    total = int(min(total, most.sum()))
    floor = np.minimum(most, least) if least * int((most > 0).sum()) <= total else np.zeros_like(most)
    exact: NDArray[np.float64] = counts * (total / max(1, int(counts.sum())))
    share: NDArray[np.int64] = np.clip(np.floor(exact).astype(np.int64), floor, most)
    while (gap := total - int(share.sum())) != 0:
        # Nearest to its exact share first; ties go to the lower label id.
        wanting = exact - share if gap > 0 else share - exact
        wanting[(share >= most) if gap > 0 else (share <= floor)] = -np.inf
        chosen = np.argsort(-wanting, kind="stable")[: abs(gap)]
        chosen = chosen[np.isfinite(wanting[chosen])]
        if not len(chosen):
            break
        share[chosen] += np.sign(gap)
    return share


def assign_rows(
    hashes: Mapping[str, NDArray[np.uint64]],
    labels: Mapping[str, NDArray[np.int16]],
    label_count: int,
    *,
    fractions: Mapping[str, float],
    limits: Mapping[str, int],
    seed: int,
) -> Assignment:
    """Assign every row of the sources `train` and, where given, `validation` and `test`.

    Args:
        hashes: by source, [n] text hashes.
        labels: by source, [n] label ids below `label_count`.
        label_count: c; 1 where the task has no classes.
        fractions: share of the train source for each split that is not given.
        limits: greatest number of rows by split, 0 for all.
        seed: chooses among the equally good assignments.
    """
    codes = {name: np.full(len(rows), SPLITS.index(name), dtype=np.uint8) for name, rows in hashes.items()}
    made = [name for name in ("test", "validation") if name not in hashes]
    removed = 0
    if made:
        # Repeats inside the one source could fall on both sides of a cut; the first of each stays.
        removed += _drop(codes["train"], _repeats(hashes["train"]))
    for winner, losers in (("test", ("validation", "train")), ("validation", ("train",))):
        if winner in hashes:
            winning = np.sort(hashes[winner][codes[winner] != DROPPED])
            for loser in losers:
                if loser in hashes:
                    removed += _drop(codes[loser], _members(hashes[loser], winning))
    if made:
        wanted = {name: fractions[name] for name in made}
        _cut(codes["train"], hashes["train"], labels["train"], label_count, wanted, seed)
    for code, split in enumerate(SPLITS):
        if limits.get(split):
            origin = split if split in hashes else "train"
            _sample(codes[origin], hashes[origin], labels[origin], label_count, code, limits[split], seed)
    counts = {split: np.zeros(label_count, dtype=np.int64) for split in SPLITS}
    for origin, assigned in codes.items():
        for code, split in enumerate(SPLITS):
            counts[split] += np.bincount(labels[origin][assigned == code], minlength=label_count)
    return Assignment(codes=codes, duplicates_removed=removed, counts=counts)


def _drop(codes: NDArray[np.uint8], mask: NDArray[np.bool_]) -> int:
    mask &= codes != DROPPED
    codes[mask] = DROPPED
    return int(mask.sum())


def _repeats(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[n] whether the same hash stands in an earlier row."""
    mask = np.zeros(len(hashes), dtype=bool)
    # Equal hashes share their top bits: sorting one sixteenth at a time bounds the memory.
    for top in range(16):
        rows = np.flatnonzero(hashes >> np.uint64(60) == top)
        rows = rows[np.argsort(hashes[rows], kind="stable")]
        ordered = hashes[rows]
        mask[rows[1:][ordered[1:] == ordered[:-1]]] = True
    return mask


def _members(hashes: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[n] whether each hash is in the sorted array, a block at a time to bound memory."""
    mask = np.zeros(len(hashes), dtype=bool)
    if len(ordered):
        for start in range(0, len(hashes), _CHUNK):
            block = hashes[start : start + _CHUNK]
            place = np.minimum(np.searchsorted(ordered, block), len(ordered) - 1)
            mask[start : start + _CHUNK] = ordered[place] == block
    return mask


def _by_label(
    codes: NDArray[np.uint8], labels: NDArray[np.int16], label_count: int, code: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that have a split code, grouped by label id, and the number per label [c]."""
    chosen = np.flatnonzero(codes == code)
    of_chosen = labels[chosen]  # NumPy sorts 16-bit integers by radix
    return chosen[np.argsort(of_chosen, kind="stable")], np.bincount(of_chosen, minlength=label_count)


def _cut(
    codes: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    labels: NDArray[np.int16],
    label_count: int,
    fractions: Mapping[str, float],
    seed: int,
) -> None:
    """Move a stratified share of train to each split of `fractions`; every label keeps a row in train."""
    rows, counts = _by_label(codes, labels, label_count, SPLITS.index("train"))
    spare = np.maximum(counts - 1, 0)
    shares = {}
    for split, fraction in fractions.items():
        shares[split] = allocate(counts, round(float(fraction) * int(counts.sum())), most=spare)
        spare = spare - shares[split]
    start = 0
    for label, count in enumerate(counts):
        group = rows[start : start + count]
        start += int(count)
        ranked = group[np.argsort(mix(hashes[group], 2 * seed), kind="stable")]
        taken = 0
        for split, share in shares.items():
            codes[ranked[taken : taken + share[label]]] = SPLITS.index(split)
            taken += int(share[label])


def _sample(
    codes: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    labels: NDArray[np.int16],
    label_count: int,
    code: int,
    limit: int,
    seed: int,
) -> None:
    """Keep a stratified sample of `limit` rows of one split; of every label at least one, where the limit allows."""
    rows, counts = _by_label(codes, labels, label_count, code)
    if counts.sum() <= limit:
        return
    shares = allocate(counts, limit, most=counts, least=1)
    start = 0
    for label, count in enumerate(counts):
        group = rows[start : start + count]
        start += int(count)
        # The row's place enters too, so that equal texts are kept or dropped each by itself.
        key = mix(hashes[group] ^ mix(group.astype(np.uint64), seed), 2 * seed + 1)
        codes[group[np.argsort(key, kind="stable")][shares[label] :]] = DROPPED
