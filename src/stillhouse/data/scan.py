"""The first pass over a source: check every row, and keep eight bytes and a label id of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.data.cells import missing_mask, missing_words, numpy_mask
from stillhouse.data.faults import Faults
from stillhouse.data.readers import Chunk
from stillhouse.data.schema import RowSchema
from stillhouse.data.sources import Source
from stillhouse.data.stream import INVALID
from stillhouse.progress import Step

__all__ = ["MAX_LABELS", "MAX_ROW_BYTES", "Meter", "Scan", "clean_chunks", "scan_source"]

MAX_ROW_BYTES = 1_000_000
"""A row whose wanted cells are longer is refused: no encoder reads so much, and it is a broken file as a rule."""
MAX_LABELS = 10_000
"""More different labels than this are not classes. Label ids are kept in 16 bits."""

_HASH_ROWS = 1 << 16


class Meter:
    """Turns bytes and rows read into a step's progress."""

    def __init__(self, step: Step | None, note: str, total_bytes: int) -> None:
        self._step = step
        self._note = note
        self._total = total_bytes
        self.bytes = 0
        self.rows = 0

    def on_bytes(self, count: int) -> None:
        """Count stored bytes that were read."""
        self.bytes += count

    def on_rows(self, count: int) -> None:
        """Count rows and report."""
        self.rows += count
        if self._step is not None:
            # Where the size is unknown there is always one more to come.
            done, total = (self.bytes, self._total) if self._total else (self.rows, self.rows + 1)
            self._step.progress(min(done, total), total, f"{self._note}: {self.rows:,} rows")


@dataclass
class Scan:
    """What one pass over a source found. n rows; rows at fault count too, with label -1."""

    hashes: NDArray[np.uint64]
    """[n] hash of each row's text."""
    labels: NDArray[np.int16]
    """[n] index into `label_names`; -1 where missing; all 0 where the schema has no class column."""
    label_names: list[str]
    """In the order of first sight."""
    digest: str
    """Of the source's content; empty where it could not be read to the end."""
    columns: tuple[str, ...]
    """All columns of the source."""
    faulty: bool
    """Whether faults were found in it."""


def clean_chunks(source: Source, schema: RowSchema, faults: Faults, meter: Meter) -> Iterator[tuple[Chunk, pa.Array]]:
    """Chunks with trimmed values, each with a mask [n] of the rows without fault."""
    for chunk in source.chunks(faults, meter.on_bytes):
        count = len(chunk.rows)
        good = np.ones(count, dtype=bool)
        sizes = np.zeros(count, dtype=np.int64)
        columns = {}
        for column in schema.columns:
            if column.name not in chunk.columns:
                continue
            array = chunk.columns[column.name]
            sizes += pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False)
            if chunk.marked:
                invalid = numpy_mask(pc.match_substring(array, INVALID))
                if invalid.any():
                    faults.add_rows(chunk.file, "utf8", chunk.rows[invalid], "is not UTF-8.", "Save the file as UTF-8.")
                    good &= ~invalid
            trimmed = pc.utf8_trim_whitespace(array)
            missing = missing_mask(trimmed)
            if missing.any():
                kind = f"missing:{column.name}"
                faults.add_rows(chunk.file, kind, chunk.rows[missing], *missing_words(column.name, column.source))
                good &= ~missing
            columns[column.name] = trimmed
        long = sizes > MAX_ROW_BYTES
        if long.any():
            what = f"is {int(sizes[long][0]):,} bytes long; {MAX_ROW_BYTES:,} are allowed."
            faults.add_rows(chunk.file, "long", chunk.rows[long], what, "Shorten or remove it.")
            good &= ~long
        meter.on_rows(count)
        yield Chunk(chunk.file, chunk.rows, columns), good
        # Arrow's allocator keeps what was freed, and over many chunks that adds up.
        del chunk, columns, good
        pa.default_memory_pool().release_unused()


def scan_source(source: Source, schema: RowSchema, faults: Faults, meter: Meter) -> Scan:
    """Read a source to its end, collecting all faults, and keep what splitting needs."""
    texts = [column.name for column in schema.of_kind("text")]
    classes = [column.name for column in schema.of_kind("class")]
    hashes: list[NDArray[np.uint64]] = []
    labels: list[NDArray[np.int16]] = []
    codes: dict[str, int] = {}
    before = len(faults)
    for chunk, good in clean_chunks(source, schema, faults, meter):
        present = [chunk.columns[name] for name in texts if name in chunk.columns]
        hashes.append(_hash_rows(present, len(chunk.rows)))
        for name in classes:
            found = np.full(len(chunk.rows), -1, dtype=np.int16)
            if name in chunk.columns:
                encoded = chunk.columns[name].filter(pa.array(good)).dictionary_encode()
                names = encoded.dictionary.to_pylist()
                if len(codes) + len(names) > MAX_LABELS and len(codes.keys() | set(names)) > MAX_LABELS:
                    source_column = next(c.source for c in schema.columns if c.name == name)
                    faults.add(
                        f"{name}_column",
                        f"{source.name} has more than {MAX_LABELS:,} different values in {source_column!r}.",
                        "Name the column that holds the classes.",
                    )
                    names = []
                if names:
                    lookup = np.array([codes.setdefault(value, len(codes)) for value in names], dtype=np.int16)
                    found[good] = lookup[encoded.indices.to_numpy(zero_copy_only=False)]
            labels.append(found)
    joined = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    hashes.clear()
    return Scan(
        hashes=joined,
        labels=np.concatenate(labels) if labels else np.zeros(len(joined), np.int16),
        label_names=list(codes),
        digest=source.digest,
        columns=tuple(source.columns),
        faulty=len(faults) > before,
    )


def _hash_rows(texts: list[pa.Array], count: int) -> NDArray[np.uint64]:
    """[n] eight-byte BLAKE2b of each row's texts: the same on every machine, and no two texts alike by accident."""
    result = np.zeros(count, dtype=np.uint64)
    if not texts:
        return result
    digest = hashlib.blake2b
    for start in range(0, count, _HASH_ROWS):
        parts = [array.slice(start, _HASH_ROWS).cast(pa.binary()).to_pylist() for array in texts]
        if len(parts) == 1:
            rows = [digest(text or b"", digest_size=8).digest() for text in parts[0]]
        else:
            # Lengths keep ("ab", "c") and ("a", "bc") apart.
            rows = [
                digest(b"".join(b"%d:" % len(t or b"") + (t or b"") for t in row), digest_size=8).digest()
                for row in zip(*parts, strict=True)
            ]
        result[start : start + len(rows)] = np.frombuffer(b"".join(rows), dtype="<u8")
    return result
