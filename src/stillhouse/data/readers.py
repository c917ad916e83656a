"""Readers of each file format: from bytes to numbered rows of strings, streamed, with every fault named.

Rows are numbered from 1 in each file, the header not counted. A reader never raises for bad content: it reports to
`Faults` and goes on where that is possible.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from stillhouse.data.cells import as_strings, json_cell, missing_words, strings_from_python
from stillhouse.data.columns import find_columns
from stillhouse.data.faults import Faults, Unreadable
from stillhouse.data.location import DataFile, describe
from stillhouse.data.schema import RowSchema
from stillhouse.data.stream import BLOCK_BYTES, INVALID, HashingStream, Utf8Stream, open_raw, open_text

__all__ = ["Chunk", "FileReader", "table_chunk"]

_TABLE_ROWS = 1 << 15
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file, as strings; null where a value is missing."""

    file: str
    rows: NDArray[np.int64]
    """Number of each row in its file, from 1."""
    columns: dict[str, pa.Array]
    """By `Column.name`; a column that the source lacks is absent."""
    marked: bool = False
    """Whether some strings may hold `INVALID` for bytes that were not UTF-8."""


def table_chunk(
    table: pa.Table | pa.RecordBatch, found: dict[str, str], file: str, before: int, faults: Faults
) -> Chunk:
    """The rows of a typed table, of which `before` rows came earlier in the same file."""
    rows = np.arange(before + 1, before + 1 + table.num_rows, dtype=np.int64)
    columns, marked = {}, False
    for name, source in found.items():
        array = table.column(source)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
            if isinstance(array, pa.ChunkedArray):  # a table without rows
                array = pa.array([], type=array.type)
        try:
            columns[name], invalid = as_strings(array)
        except TypeError as error:
            faults.add(file, f"column {source!r} holds {error}, not text.", f"Give another {name}_column.")
            continue
        marked |= invalid
    return Chunk(file, rows, columns, marked)


class FileReader:
    """Reads one file. `digest` and `columns` are known once `chunks` has been read to its end."""

    def __init__(self, file: DataFile, schema: RowSchema, source: str) -> None:
        self.file = file
        self.source = source
        self.schema = schema
        self.columns: list[str] = []
        """All columns of the file."""
        self.digest = ""
        """sha256 of the stored bytes; empty where the file could not be read."""

    def chunks(self, faults: Faults, on_bytes: Callable[[int], None]) -> Iterator[Chunk]:
        """All rows, in order."""
        try:
            if self.file.format == "parquet":
                yield from self._parquet(faults, on_bytes)
                return
            with open_text(self.file, on_bytes) as (text, raw):
                if self.file.format == "jsonl":
                    yield from self._json_lines(text, faults)
                else:
                    yield from self._delimited(text, faults, quoted=self.file.format == "csv")
                self._finish(raw)
        except Unreadable as error:
            faults.add(self.file.name, error.what, error.remedy)

    def _finish(self, raw: HashingStream) -> None:
        raw.drain()
        self.digest = raw.hexdigest()

    # Delimited text

    def _delimited(self, text: Utf8Stream, faults: Faults, *, quoted: bool) -> Iterator[Chunk]:
        name = self.file.name
        header = _take_header(text, quoted=quoted)
        if text.utf16:
            faults.add(name, "is UTF-16, not UTF-8.", "Save it as UTF-8.")
            return
        if header is None:
            faults.add(name, "is empty.", "Give a file with a header and rows.")
            return
        if any(INVALID in cell for cell in header):
            faults.add(f"{name}, header", "is not UTF-8.", "Save the file as UTF-8.")
            return
        self.columns = header
        found = find_columns(header, self.schema, name, faults, source=self.source)
        rest = text.read(BLOCK_BYTES)
        if not rest.strip(b"\r\n"):
            return
        text.push_back(rest)
        # Positions stand for names: other columns may share a name, or have none.
        keys = [str(index) for index in range(len(header))]
        wanted = {name: str(header.index(source)) for name, source in found.items()}
        skipped: list[int] = []
        last_row = (0, "")

        def on_ragged(row: Any) -> str:
            nonlocal last_row
            insort(skipped, row.number)
            last_row = max(last_row, (row.number, row.text))
            if INVALID in row.text:
                faults.add_rows(name, "utf8", [row.number], "is not UTF-8.", "Save the file as UTF-8.")
            what = f"the header has {row.expected_columns} cells, the first such row has {row.actual_columns}."
            faults.add_rows(name, "ragged", [row.number], what, _ragged_remedy(quoted=quoted))
            return "skip"

        read = 0
        try:
            reader = pyarrow.csv.open_csv(
                pa.PythonFile(text, mode="r"),
                read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=keys),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter="," if quoted else "\t",
                    quote_char='"' if quoted else False,
                    newlines_in_values=quoted,
                    invalid_row_handler=on_ragged,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    check_utf8=False,
                    include_columns=list(dict.fromkeys(wanted.values())) or keys[:1],
                    column_types={key: pa.string() for key in wanted.values()} or {keys[0]: pa.string()},
                    strings_can_be_null=False,
                ),
            )
            for batch in reader:
                good_before = np.array(skipped, dtype=np.int64) - np.arange(1, len(skipped) + 1)
                index = np.arange(read, read + batch.num_rows, dtype=np.int64)
                rows = index + 1 + np.searchsorted(good_before, index, side="right")
                read += batch.num_rows
                columns = {name: batch.column(key) for name, key in wanted.items()}
                if batch.num_rows:
                    last_text = "".join(array[-1].as_py() for array in columns.values())
                    last_row = max(last_row, (int(rows[-1]), last_text))
                yield Chunk(name, rows, columns, text.invalid)
        except pa.ArrowInvalid as error:
            row = read + len(skipped) + 1
            if "straddling" in str(error):
                what = f"is longer than {BLOCK_BYTES >> 20} MB; the rows after it were not checked."
                remedy = "Shorten it." + (" Or is a quotation mark never closed?" if quoted else "")
            else:
                what, remedy = f"cannot be parsed ({describe(error)}); later rows were not checked.", "Mend the file."
            # Arrow reads ahead by a block, so the row is at or after this one.
            faults.add(f"{name}, row {row} or later", what, remedy)
        if quoted and text.quotes % 2 and "\n" in last_row[1]:
            faults.add(f"{name}, last row", "opens a quotation mark that is never closed.", "Close it.")

    # JSON lines

    def _json_lines(self, text: Utf8Stream, faults: Faults) -> Iterator[Chunk]:
        name = self.file.name
        sources = {column.name: column.source for column in self.schema.columns}
        cells: dict[str, list[str | None]] = {column: [] for column in sources}
        numbers: list[int] = []
        seen: dict[str, None] = {}
        absent: dict[str, list[NDArray[np.int64]]] = {column: [] for column in sources}
        held = row = 0

        def flush() -> Chunk:
            for column, source in sources.items():
                if source not in seen:
                    absent[column].append(np.array(numbers, dtype=np.int64))
            chunk = Chunk(
                name,
                np.array(numbers, dtype=np.int64),
                {column: strings_from_python(cells[column]) for column in sources if sources[column] in seen},
                True,
            )
            numbers.clear()
            for column in cells:
                cells[column].clear()
            return chunk

        for line in _lines(text):
            if text.utf16:
                faults.add(name, "is UTF-16, not UTF-8.", "Save it as UTF-8.")
                return
            if line is not None and not line.strip():
                continue
            row += 1
            if line is None:
                faults.add_rows(name, "long", [row], f"is longer than {BLOCK_BYTES >> 20} MB.", "Shorten it.")
                continue
            if text.invalid and INVALID.encode() in line:
                faults.add_rows(name, "utf8", [row], "is not UTF-8.", "Save the file as UTF-8.")
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                what = f"is not JSON ({error})." if isinstance(error, ValueError) else "is nested too deeply."
                faults.add_rows(name, "json", [row], what, "Each line must be one JSON object.")
                continue
            if not isinstance(value, dict):
                faults.add_rows(
                    name, "object", [row], f"is a JSON {type(value).__name__}.", "Each line must be one JSON object."
                )
                continue
            if len(seen) < 1000:
                seen.update(dict.fromkeys(value))
            seen.update((source, None) for source in sources.values() if source in value)
            try:
                values = {column: json_cell(value.get(source)) for column, source in sources.items()}
            except TypeError as error:
                faults.add_rows(name, "nested", [row], f"a wanted column holds {error}, not text.", "Flatten it.")
                continue
            numbers.append(row)
            for column, cell in values.items():
                cells[column].append(cell)
            held += len(line)
            if len(numbers) >= _TABLE_ROWS or held >= BLOCK_BYTES:
                held = 0
                yield flush()
        self.columns = list(seen)
        if not row:
            faults.add(name, "is empty.", "Give a file with one JSON object a line.")
        elif seen:
            find_columns(self.columns, self.schema, name, faults, source=self.source)
        if numbers:
            yield flush()
        # A key that no object had so far may be a column that does not exist, or one that comes late.
        for column, source in sources.items():
            if source in seen:
                for rows in absent[column]:
                    faults.add_rows(name, f"missing:{column}", rows, *missing_words(column, source))

    # Parquet

    def _parquet(self, faults: Faults, on_bytes: Callable[[int], None]) -> Iterator[Chunk]:
        name = self.file.name
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(open_raw(self.file, on_bytes))
            if isinstance(self.file.filesystem, LocalFileSystem):
                self._finish(raw)
                local: Any = stack.enter_context(Path(self.file.path).open("rb"))
            else:
                # Parquet is read from its end, which a web server need not allow, and the hash needs every byte in
                # order: one sequential copy on disk serves both.
                local = stack.enter_context(tempfile.TemporaryFile(prefix="stillhouse-"))
                while block := raw.read(BLOCK_BYTES):
                    local.write(block)
                self.digest = raw.hexdigest()
            if not local.seek(0, io.SEEK_END):
                faults.add(name, "is empty.", "Give a file with rows.")
                return
            local.seek(0)
            before = 0
            try:
                file = pyarrow.parquet.ParquetFile(local)
                self.columns = list(file.schema_arrow.names)
                found = find_columns(self.columns, self.schema, name, faults, source=self.source)
                for batch in file.iter_batches(batch_size=_TABLE_ROWS, columns=list(dict.fromkeys(found.values()))):
                    chunk = table_chunk(batch, found, name, before, faults)
                    before += batch.num_rows
                    yield chunk
            except (pa.ArrowException, OSError) as error:
                faults.add(name, f"is not a whole Parquet file ({describe(error)}).", "Write it again.")


def _take_header(text: Utf8Stream, *, quoted: bool) -> list[str] | None:
    """The cells of the first line that is not blank, leaving the stream behind it; None for an empty file."""
    head = b""
    while True:
        block = text.read(1 << 16)
        head = (head + block).lstrip(b"\r\n")
        end = _line_end(head, quoted=quoted)
        if end >= 0 or not block:
            break
        if len(head) > _MAX_HEADER_BYTES:
            raise Unreadable("its first row, the header, is longer than 1 MB.", "Is this a text file?")
    if end < 0:
        end = len(head)
    line, rest = head[:end], head[end:]
    text.push_back(rest[2:] if rest.startswith(b"\r\n") else rest[1:])
    if not line.strip():
        return None
    decoded = line.decode()
    if not quoted:
        return decoded.split("\t")
    try:
        return next(csv.reader(io.StringIO(decoded, newline="")), None)
    except csv.Error as error:
        raise Unreadable(f"its header cannot be parsed ({error}).", "Is this a CSV file?") from None


def _line_end(head: bytes, *, quoted: bool) -> int:
    """Index of the first line break outside quotation marks, or -1."""
    inside = False
    for index, byte in enumerate(head):
        if byte == 0x22 and quoted:
            inside = not inside
        elif byte in b"\r\n" and not inside:
            return index
    return -1


def _lines(text: Utf8Stream) -> Iterator[bytes | None]:
    """Lines without their breaks; None in place of a line longer than `BLOCK_BYTES`."""
    lines = io.BufferedReader(text, 1 << 20)
    while line := lines.readline(BLOCK_BYTES):
        if len(line) == BLOCK_BYTES and not line.endswith(b"\n"):
            while (more := lines.readline(BLOCK_BYTES)) and not more.endswith(b"\n"):
                pass
            yield None
        else:
            yield line


def _ragged_remedy(*, quoted: bool) -> str:
    if quoted:
        return "Give every row as many cells; a cell that holds a comma or a line break needs quotation marks."
    return "Give every row as many cells; a TSV cell cannot hold a tab or a line break."
