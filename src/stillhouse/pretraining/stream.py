"""Training sequences, made from a prepared corpus while it is read: one file in memory, for ever, and in batches.

Everything is drawn from generators seeded by the corpus's pass, its file, or the step. So the sequences of a step and
their masks depend on the seed and on the number of sequences in a step alone: not on how these are shared out between
processes and micro-batches, nor on whether the training was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from stillhouse.errors import InputError, Problem
from stillhouse.objectives import choose_positions, mask_tokens
from stillhouse.pretraining.segments import next_sentence_pairs, sentence_order_pairs
from stillhouse.pretraining.shards import Shard, read_shard
from stillhouse.pretraining.vocabulary import Vocabulary

__all__ = ["Batches", "Position", "Recipe", "Sequences", "mask_block", "to_tensors"]

_ORDER, _FILE, _MASKS = 0, 1, 2
"""What a generator is for, part of its seed."""


class Position(NamedTuple):
    """A place in the endless stream of sequences."""

    round: int = 0
    """How often the whole corpus was read before."""
    place: int = 0
    """Files read in this pass before the present one."""
    sequence: int = 0
    """Sequences of the present file that were used before."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How sequences are made and masked."""

    length: int
    """Tokens of a full sequence, special ones included."""
    task: str = ""
    """`nsp` or `sop` makes pairs of segments; empty makes single sequences, packed to the full length."""
    mask_probability: float = 0.15
    whole_words: bool = False
    longest: int = 1
    """Words that are masked together at most; above 1, they are whole words."""
    seed: int = 0


class _Made(NamedTuple):
    """The sequences of one file, in the order of their use."""

    tokens: NDArray[np.int32]
    rows: NDArray[np.int64]
    """[n, 5]: start and end of both segments in `tokens`, and the label. Single sequences have an empty second one."""


class Sequences:
    """An endless stream of sequences: files in an order that is drawn for each pass, and the documents of each too.

    Raises:
        InputError: no sequence can be made of the files.
    """

    def __init__(self, paths: list[Path], recipe: Recipe, vocabulary: Vocabulary) -> None:
        self.paths = paths
        self.recipe = recipe
        self.vocabulary = vocabulary

    def blocks(self, count: int, position: Position) -> Iterator[tuple[dict[str, NDArray[Any]], Position, float]]:
        """From a position on, `count` sequences at a time, with the position after them and the passes until there."""
        parts: list[dict[str, NDArray[Any]]] = []
        missing = count
        round_, place, used = position
        idle = 0
        while True:
            order = np.random.default_rng([self.recipe.seed, _ORDER, round_]).permutation(len(self.paths))
            while place < len(order):
                made = self._make(round_, int(order[place]))
                idle = 0 if len(made.rows) else idle + 1
                if idle >= len(order):
                    raise InputError(
                        Problem("corpus", f"no training sequence can be made of it for {self.recipe.task or 'mlm'}.",
                                "Give documents of several sentences each.")
                    )  # fmt: skip
                while used < len(made.rows):
                    taken = made.rows[used : used + missing]
                    parts.append(self._fill(made.tokens, taken))
                    used += len(taken)
                    missing -= len(taken)
                    if not missing:
                        block = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                        done = round_ + (place + used / len(made.rows)) / len(order)
                        yield block, Position(round_, place, used), round(done, 4)
                        parts, missing = [], count
                place, used = place + 1, 0
            round_, place = round_ + 1, 0

    def first(self, count: int) -> dict[str, NDArray[Any]]:
        """The first sequences, fewer where a single pass has fewer. Of pairs, as many of one label as of the other.

        Next-sentence pairs have more of one label than of the other, by how documents end; a model that has learned
        nothing is to be right half of the time.
        """
        parts: list[dict[str, NDArray[Any]]] = []
        missing = [count - count // 2, count // 2] if self.recipe.task else [count]
        order = np.random.default_rng([self.recipe.seed, _ORDER, 0]).permutation(len(self.paths))
        for file in order:
            made = self._make(0, int(file))
            places = [np.flatnonzero(made.rows[:, 4] == label)[:wanted] for label, wanted in enumerate(missing)]
            missing = [wanted - len(found) for wanted, found in zip(missing, places, strict=True)]
            taken = made.rows[np.sort(np.concatenate(places))]
            if len(taken):
                parts.append(self._fill(made.tokens, taken))
            if not any(missing):
                break
        if not parts:
            raise InputError(
                Problem("corpus", f"no held-out sequence can be made of it for {self.recipe.task or 'mlm'}.",
                        "Raise validation_fraction, or give more documents of several sentences.")
            )  # fmt: skip
        block = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if self.recipe.task:
            places = [np.flatnonzero(block["labels"] == label) for label in (0, 1)]
            each = max(1, min(map(len, places)))  # of a corpus so small that one label is absent, at least something
            kept = np.sort(np.concatenate([found[:each] for found in places]))
            block = {name: values[kept] for name, values in block.items()}
        return block

    def _make(self, round_: int, file: int) -> _Made:
        random = np.random.default_rng([self.recipe.seed, _FILE, round_, file])
        shard = read_shard(self.paths[file])
        order = random.permutation(len(shard.documents))
        documents = [shard.documents[index] for index in order]
        if not self.recipe.task:
            made = self._pack(shard, documents)
        else:
            pairs = next_sentence_pairs if self.recipe.task == "nsp" else sentence_order_pairs
            made = _Made(shard.tokens, pairs(documents, self.recipe.length - 3, random))
        return _Made(made.tokens, made.rows[random.permutation(len(made.rows))])

    def _pack(self, shard: Shard, documents: list[list[int]]) -> _Made:
        """Documents one after the other, a separator after each, cut into full sequences; the file's last is shorter.

        Source: Liu et al. 2019, arXiv:1907.11692, section 4.2 (full sentences), but cut anywhere, so that none is
        padded. DistilBERT is trained so, without a sentence task (Sanh et al. 2019, arXiv:1910.01108, section 3).
        """
        separator = np.array([self.vocabulary.separator], dtype=np.int32)
        parts = [part for edges in documents for part in (shard.tokens[edges[0] : edges[-1]], separator)]
        tokens = np.concatenate(parts)[:-1]  # the last separator is the sequence's own
        starts = np.arange(0, len(tokens), self.recipe.length - 2, dtype=np.int64)
        ends = np.minimum(starts + self.recipe.length - 2, len(tokens))
        zeros = np.zeros_like(starts)
        return _Made(tokens, np.stack([starts, ends, zeros, zeros, zeros], axis=1))

    def _fill(self, tokens: NDArray[np.int32], rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """`ids` [n, s], `types` [n, s], `lengths` [n] and `labels` [n] of the rows, with special tokens and padding."""
        vocabulary = self.vocabulary
        ids = np.full((len(rows), self.recipe.length), vocabulary.padding, dtype=np.int64)
        types = np.zeros_like(ids)
        lengths = np.zeros(len(rows), dtype=np.int64)
        for row, (start, end, second, last, _) in enumerate(rows.tolist()):
            middle = 2 + end - start
            ids[row, 0] = vocabulary.start
            ids[row, 1 : middle - 1] = tokens[start:end]
            ids[row, middle - 1] = vocabulary.separator
            lengths[row] = middle
            if last > second:
                stop = middle + 1 + last - second
                ids[row, middle : stop - 1] = tokens[second:last]
                ids[row, stop - 1] = vocabulary.separator
                types[row, middle:stop] = 1
                lengths[row] = stop
        return {"ids": ids, "types": types, "lengths": lengths, "labels": rows[:, 4]}


def mask_block(
    block: dict[str, NDArray[Any]], recipe: Recipe, vocabulary: Vocabulary, random: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """The block with `ids` [n, s] masked, and `chosen` [n, s] and the `targets` [n, s] to be predicted there."""
    ids = block["ids"]
    inside = np.arange(ids.shape[1]) < block["lengths"][:, None]
    candidates = inside & ~vocabulary.special[ids]
    continues = vocabulary.continues[ids] if recipe.whole_words or recipe.longest > 1 else None
    chosen = choose_positions(candidates, recipe.mask_probability, random, continues, recipe.longest)
    masked = mask_tokens(ids, chosen, vocabulary.mask, vocabulary.ordinary, random)
    return {**block, "ids": masked, "targets": ids, "chosen": chosen}


def to_tensors(block: dict[str, NDArray[Any]], rows: slice | NDArray[np.int64], *, types: bool) -> dict[str, Any]:
    """A model's batch of some rows [b, s] of a masked block, cut to the longest.

    `positions` [m] are the masked positions, counted through all rows, and `targets` [m] the tokens there.
    """
    lengths = block["lengths"][rows]
    longest = int(lengths.max())
    chosen = block["chosen"][rows, :longest]
    batch = {
        "input_ids": torch.from_numpy(np.ascontiguousarray(block["ids"][rows, :longest])),
        "attention_mask": torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64)),
        "positions": torch.from_numpy(np.flatnonzero(chosen)),
        "targets": torch.from_numpy(block["targets"][rows, :longest][chosen]),
        "labels": torch.from_numpy(np.ascontiguousarray(block["labels"][rows])),
    }
    if types:
        batch["token_type_ids"] = torch.from_numpy(np.ascontiguousarray(block["types"][rows, :longest]))
    return batch


class Batches(IterableDataset[dict[str, Any]]):
    """The micro-batches of one process, for `steps` steps, of which those before `begin` are left out.

    A step's sequences are shared out so that several processes take the micro-batches that one process would, and each
    batch says what its terms weigh: `shares`, by which a mean over this batch's masked positions, sequences and tokens
    is to be multiplied, so that the mean of all micro-batches of all processes is the mean over the whole step.

    Args:
        sequences: where they come from.
        batch_size: sequences of a micro-batch.
        accumulation: micro-batches of a process in a step.
        steps: of the whole training.
        rank: this process's number.
        processes: how many there are.
    """

    def __init__(
        self, sequences: Sequences, *, batch_size: int, accumulation: int, steps: int, rank: int, processes: int
    ) -> None:
        self._sequences = sequences
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._steps = steps
        self._rank = rank
        self._processes = processes
        self.begin = 0
        """Steps that were taken before."""
        self.position = Position()
        """Where the sequences of step `begin` begin."""

    def __len__(self) -> int:
        return self._steps * self._accumulation

    def __iter__(self) -> Iterator[dict[str, Any]]:
        recipe, vocabulary = self._sequences.recipe, self._sequences.vocabulary
        size, parts = self._batch_size, self._accumulation * self._processes
        blocks = self._sequences.blocks(size * parts, self.position)
        for step in range(self.begin, self._steps):
            block, position, epoch = next(blocks)
            random = np.random.default_rng([recipe.seed, _MASKS, step])
            block = mask_block(block, recipe, vocabulary, random)
            masked, tokens = int(block["chosen"].sum()), int(block["lengths"].sum())
            for index in range(self._accumulation):
                begin = (index * self._processes + self._rank) * size
                batch = to_tensors(block, slice(begin, begin + size), types=bool(recipe.task))
                batch["shares"] = {
                    "masked": len(batch["targets"]) * parts / masked,
                    "tokens": int(batch["attention_mask"].sum()) * parts / tokens,
                }
                batch["position"] = tuple(position)
                batch["epoch"] = epoch
                yield batch
