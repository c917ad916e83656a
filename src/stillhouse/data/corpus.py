"""A corpus: whole documents of running text, read one after the other, and the sentences of each.

    text files (.txt)                        documents separated by blank lines
    JSONL, Parquet, CSV, TSV, hub://, demo:// one document a row, in the text column

Nothing but one document is kept in memory, and a source may be read several times.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

from stillhouse.artifacts import digest_json
from stillhouse.data.cells import missing_mask
from stillhouse.data.faults import Faults, Unreadable
from stillhouse.data.location import FORMATS, DataFile, find_files, parse_hub, public_name, scheme_of
from stillhouse.data.readers import Chunk, FileReader
from stillhouse.data.schema import Column, RowSchema
from stillhouse.data.sources import DemoSource, Source
from stillhouse.data.stream import BLOCK_BYTES, INVALID, open_text

__all__ = ["CORPUS_FORMATS", "CorpusSource", "share_of", "split_sentences"]

CORPUS_FORMATS = {**FORMATS, ".txt": "text"}
"""File format by suffix; all but Parquet may carry `.gz` after it."""
MAX_DOCUMENT = 1 << 20
"""Characters after which a document of a text file is cut: one without blank lines would fill the memory."""

_END = re.compile(
    r"""
    (?<=[.!?…])["'”’»)\]]*\s+(?=\S)        # a closing mark, quotes or brackets after it, a space
    | (?<=[。！？])["”’」』）]*(?=\S)        # scripts that put no space there
    """,
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"""(?:^|[\s(\["'“‘])(?:
        [^\W\d_] | (?:[^\W\d_]\.)+[^\W\d_]      # an initial, or several: J. K. Rowling, U.S. Navy
        | Mr | Mrs | Ms | Dr | Prof | Rev | Gen | Col | Capt | Lt | Sgt | Sen | Rep | Gov | Hon | St | Jr | Sr
        | Mt | Ft | No | Nos | Vol | vs | cf | al | etc | Inc | Ltd | Co | Corp | Bros | approx | ca | fl
        | Jan | Feb | Mar | Apr | Jun | Jul | Aug | Sept | Sep | Oct | Nov | Dec | e\.g | i\.e
    )\.$""",
    re.VERBOSE,
)


class CorpusSource:
    """All documents behind one location, in a fixed order.

    Args:
        location: a file or folder of `CORPUS_FORMATS` (path, `s3://`, `gs://`, `https://`), `hub://` or `demo://`.
        text_column: of sources with columns.

    Raises:
        Unreadable: nothing is there, or it cannot be read.
    """

    def __init__(self, location: str, text_column: str) -> None:
        self.name = public_name(location)
        self.digest = ""
        """Of the content, known once all documents were read; empty where that failed."""
        self.total_bytes = 0
        """Stored bytes; 0 where unknown."""
        self._schema = RowSchema((Column("text", text_column, "text"),))
        self._files: list[DataFile] = []
        self._rows: Source | None = None
        scheme = scheme_of(location)
        if scheme == "demo":
            self._rows = DemoSource(location, self._schema)
        elif scheme == "hub":
            from stillhouse.data.hub import HubDataset

            parsed = parse_hub(location)
            assert parsed is not None  # checked with the settings
            self._rows = HubDataset(location, parsed).source("train", self._schema)
        else:
            self._files = find_files(location, CORPUS_FORMATS)
            sizes = [file.size for file in self._files]
            self.total_bytes = sum(sizes) if all(sizes) else 0

    def documents(self, faults: Faults, on_bytes: Callable[[int], None]) -> Iterator[str]:
        """Every document that is not blank, in order. Faults of the content are collected, never raised."""
        self.digest = ""
        if self._rows is not None:
            for chunk in self._rows.chunks(faults, on_bytes):
                yield from _texts(chunk, faults)
            self.digest = self._rows.digest
            return
        digests = []
        for file in self._files:
            if file.format == "text":
                digest: list[str] = []
                yield from _text_documents(file, faults, on_bytes, digest)
                digests += digest
                continue
            reader = FileReader(file, self._schema, self.name)
            for chunk in reader.chunks(faults, on_bytes):
                yield from _texts(chunk, faults)
            digests.append(reader.digest)
        if len(digests) == len(self._files) and all(digests):
            self.digest = digest_json(
                [[file.format, digest] for file, digest in zip(self._files, digests, strict=True)]
            )


def split_sentences(text: str) -> list[str]:
    """The sentences of a document, in order: its lines, cut where a sentence ends.

    A sentence ends at a full stop, a question or exclamation mark before a space and anything but a small letter;
    initials and common English abbreviations end none. Pretraining needs segments that mostly begin and end with
    sentences, so a wrong cut here and there does no harm.
    """
    found = []
    for line in text.splitlines():
        start = 0
        for match in _END.finditer(line):
            before, after = line[start : match.start()], line[match.end()]
            if after.islower() or _ABBREVIATION.search(before[-24:]):
                continue
            found.append(line[start : match.end()])
            start = match.end()
        found.append(line[start:])
    return [stripped for sentence in found if (stripped := sentence.strip())]


def share_of(text: str, seed: int, purpose: str) -> float:
    """A number from 0 to below 1 that text, seed and purpose decide: for one purpose, all are equally likely."""
    digest = hashlib.blake2b(f"{purpose}:{seed}:{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _texts(chunk: Chunk, faults: Faults) -> Iterator[str]:
    import pyarrow.compute as pc

    array: Any = chunk.columns.get("text")
    if array is None:
        return
    missing = missing_mask(pc.utf8_trim_whitespace(array))
    for row, text, skip in zip(chunk.rows, array.to_pylist(), missing, strict=True):
        if skip:
            continue
        if chunk.marked and INVALID in text:
            faults.add_rows(chunk.file, "utf8", [int(row)], "is not UTF-8.", "Save the file as UTF-8.")
            continue
        yield text


def _text_documents(
    file: DataFile, faults: Faults, on_bytes: Callable[[int], None], digest: list[str]
) -> Iterator[str]:
    try:
        with open_text(file, on_bytes) as (text, raw):
            lines = io.TextIOWrapper(io.BufferedReader(text, min(BLOCK_BYTES, 1 << 20)), "utf-8")
            held: list[str] = []
            size = number = 0
            while line := lines.readline(MAX_DOCUMENT):
                if text.utf16:
                    faults.add(file.name, "is UTF-16, not UTF-8.", "Save it as UTF-8.")
                    return
                number += 1
                if INVALID in line:
                    faults.add(f"{file.name}, line {number}", "is not UTF-8.", "Save the file as UTF-8.", key="utf8")
                    continue
                if line.strip():
                    held.append(line)
                    size += len(line)
                if held and (not line.strip() or size >= MAX_DOCUMENT):
                    yield "".join(held)
                    held, size = [], 0
            if held:
                yield "".join(held)
            raw.drain()
            digest.append(raw.hexdigest())
    except Unreadable as error:
        faults.add(file.name, error.what, error.remedy)
