"""The second pass: every row to the Parquet file of its split."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from stillhouse.artifacts import SplitInfo
from stillhouse.data.faults import Faults, Unreadable
from stillhouse.data.scan import MAX_ROW_BYTES, Meter, clean_chunks
from stillhouse.data.schema import RowSchema
from stillhouse.data.sources import Source
from stillhouse.data.split import SPLITS, Assignment
from stillhouse.progress import Step

__all__ = ["QUANTILES", "write_splits"]

QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)
_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 32 << 20


class _SplitWriter:
    """One Parquet file, written in row groups of a bounded size, and the statistics of its rows."""

    def __init__(self, path: Path, schema: RowSchema) -> None:
        kinds = {"text": pa.string(), "class": pa.int64()}
        self._schema = pa.schema([(column.name, kinds[column.kind]) for column in schema.columns])
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._texts = [column.name for column in schema.of_kind("text")]
        self._held: list[pa.Table] = []
        self._held_rows = self._held_bytes = 0
        self._lengths: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        self.rows = 0

    def write(self, columns: Mapping[str, pa.Array]) -> None:
        table = pa.table([columns[name] for name in self._schema.names], schema=self._schema)
        if not table.num_rows:
            return
        lengths = sum(pc.utf8_length(columns[name]).to_numpy(zero_copy_only=False) for name in self._texts)
        counts = np.bincount(np.minimum(lengths, MAX_ROW_BYTES))
        if len(counts) > len(self._lengths):
            counts, self._lengths = self._lengths, counts
        self._lengths[: len(counts)] += counts
        self.rows += table.num_rows
        self._held.append(table)
        self._held_rows += table.num_rows
        self._held_bytes += table.nbytes
        if self._held_rows >= _GROUP_ROWS or self._held_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.concat_tables(self._held), row_group_size=_GROUP_ROWS)
        self._held.clear()
        self._held_rows = self._held_bytes = 0

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def length_quantiles(self) -> dict[str, float]:
        """The smallest length that at least the quantile's share of rows does not exceed."""
        if not self.rows:
            return {}
        cumulated = np.cumsum(self._lengths)
        return {str(q): float(np.searchsorted(cumulated, np.ceil(q * self.rows - 1e-9))) for q in QUANTILES}


def write_splits(
    folder: Path,
    sources: Mapping[str, Source],
    schema: RowSchema,
    assignment: Assignment,
    label_names: Sequence[str],
    step: Step | None,
) -> dict[str, SplitInfo]:
    """Read all sources again and write `<split>.parquet` files to `folder`.

    Raises:
        Unreadable: a source has become unreadable, or other than it was in the first pass.
    """
    sizes = [source.total_bytes for source in sources.values()]
    meter = Meter(step, "writing", sum(sizes) if all(sizes) else 0)
    value_set = pa.array(label_names, pa.string())
    classes = [column.name for column in schema.of_kind("class")]
    with contextlib.ExitStack() as stack:
        writers = {}
        for split in SPLITS:
            writers[split] = _SplitWriter(folder / f"{split}.parquet", schema)
            stack.callback(writers[split].close)
        for origin, source in sources.items():
            faults = Faults()
            codes = assignment.codes[origin]
            start = 0
            for chunk, _ in clean_chunks(source, schema, faults, meter):
                of_chunk = codes[start : start + len(chunk.rows)]
                start += len(chunk.rows)
                if faults or start > len(codes):
                    break
                columns = dict(chunk.columns)
                for name in classes:
                    columns[name] = pc.index_in(columns[name], value_set=value_set).cast(pa.int64())
                for code in np.unique(of_chunk[of_chunk < len(SPLITS)]):
                    mask = pa.array(of_chunk == code)
                    writers[SPLITS[code]].write({name: array.filter(mask) for name, array in columns.items()})
            if faults or start != len(codes):
                problems = "; ".join(str(problem) for problem in faults.problems()) or "its rows changed"
                raise Unreadable(f"{source.name} could not be read a second time: {problems}.", "Run again.")
    return {
        split: SplitInfo(
            rows=writer.rows,
            class_counts={name: int(count) for name, count in zip(label_names, assignment.counts[split], strict=False)},
            length_quantiles=writer.length_quantiles(),
        )
        for split, writer in writers.items()
    }
