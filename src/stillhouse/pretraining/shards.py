"""The Parquet files that a prepared corpus is made of: written one after the other, and read one at a time.

A file holds a row a document: `sentences`, a list of lists of token ids, without special tokens.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = ["Shard", "ShardWriter", "read_shard", "shard_paths"]

SHARD_TOKENS = 1 << 22
"""Tokens after which a new file is begun. One file at a time is in memory, so this bounds it: 16 MB of token ids."""
_SCHEMA = pa.schema([("sentences", pa.list_(pa.list_(pa.int32())))])


@dataclass(frozen=True)
class Shard:
    """The documents of one file."""

    tokens: NDArray[np.int32]
    """[n] all tokens, document after document."""
    documents: list[list[int]]
    """Edges of each document: where in `tokens` its sentences begin, and where the last one ends."""


class ShardWriter:
    """Writes documents to `FOLDER/part-00000.parquet` and so on, and counts them."""

    def __init__(self, folder: Path, shard_tokens: int = SHARD_TOKENS) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._limit = shard_tokens
        self._tokens = array("i")
        self._sentences = array("q", [0])
        self._documents = array("q", [0])
        self.documents = self.sentences = self.tokens = self.shards = 0

    def write(self, sentences: Sequence[Sequence[int]]) -> None:
        """Add a document; empty sentences are left out, and so is a document of such."""
        kept = [sentence for sentence in sentences if sentence]
        if not kept:
            return
        for sentence in kept:
            self._tokens.extend(sentence)
            self._sentences.append(len(self._tokens))
        self._documents.append(len(self._sentences) - 1)
        self.documents += 1
        self.sentences += len(kept)
        self.tokens += sum(map(len, kept))
        if len(self._tokens) >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write what is held to a file."""
        if len(self._documents) == 1:
            return
        inner = pa.ListArray.from_arrays(pa.array(self._sentences, pa.int32()), pa.array(self._tokens, pa.int32()))
        outer = pa.ListArray.from_arrays(pa.array(self._documents, pa.int32()), inner)
        path = self._folder / f"part-{self.shards:05d}.parquet"
        pq.write_table(pa.Table.from_arrays([outer], schema=_SCHEMA), path, compression="zstd")
        self.shards += 1
        self._tokens, self._sentences, self._documents = array("i"), array("q", [0]), array("q", [0])


def shard_paths(corpus_dir: Path, split: str) -> list[Path]:
    """The files of a split, `train` or `validation`, in order."""
    return sorted((corpus_dir / split).glob("part-*.parquet"))


def read_shard(path: Path) -> Shard:
    """A file's documents."""
    column: Any = pq.read_table(path, columns=["sentences"]).column("sentences").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    inner = column.values
    starts = inner.offsets.to_numpy()
    bounds = column.offsets.to_numpy()
    documents = [starts[begin : end + 1].tolist() for begin, end in itertools.pairwise(bounds) if end > begin]
    return Shard(inner.values.to_numpy(), documents)
