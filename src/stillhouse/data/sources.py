"""A source: all rows behind one location, whatever kind it is, with the digest of its present content."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from stillhouse.artifacts import digest_json
from stillhouse.data.columns import find_columns
from stillhouse.data.config import DataConfig
from stillhouse.data.faults import Faults, Unreadable
from stillhouse.data.location import (
    SPLIT_PARAMETERS,
    check_location,
    find_files,
    parse_demo,
    parse_hub,
    public_name,
    scheme_of,
)
from stillhouse.data.readers import Chunk, FileReader, table_chunk
from stillhouse.data.schema import RowSchema

__all__ = ["DemoSource", "FileSource", "Source", "open_sources"]

_DEMO_CHUNK = 8192


class Source(ABC):
    """All rows of one split's location, in a fixed order. May be read several times."""

    name: str
    """As people know it."""
    total_bytes: int = 0
    """Stored bytes; 0 where unknown."""
    optional: bool = False
    """Whether the user did not name it: a split that a hub dataset happens to have. Without labels it is not used."""

    def __init__(self) -> None:
        self.columns: list[str] = []
        """All columns, known once read."""
        self.digest = ""
        """Of the content, known once read to the end; empty where that failed."""

    @abstractmethod
    def chunks(self, faults: Faults, on_bytes: Callable[[int], None]) -> Iterator[Chunk]:
        """All rows, in order. Faults are collected, never raised."""


class FileSource(Source):
    """One file, or all files of a folder one after the other."""

    def __init__(self, location: str, schema: RowSchema) -> None:
        super().__init__()
        self.name = public_name(location)
        self._readers = [FileReader(file, schema, self.name) for file in find_files(location)]
        sizes = [reader.file.size for reader in self._readers]
        self.total_bytes = sum(sizes) if all(sizes) else 0

    def chunks(self, faults: Faults, on_bytes: Callable[[int], None]) -> Iterator[Chunk]:
        for reader in self._readers:
            yield from reader.chunks(faults, on_bytes)
            self.columns = self.columns or reader.columns
        digests = [reader.digest for reader in self._readers]
        formats = [f"{reader.file.format}{'.gz' if reader.file.compressed else ''}" for reader in self._readers]
        self.digest = digest_json(list(zip(formats, digests, strict=True))) if all(digests) else ""


class DemoSource(Source):
    """The built-in generator's rows."""

    def __init__(self, location: str, schema: RowSchema) -> None:
        super().__init__()
        self.name = location
        self._schema = schema
        self._rows, self._seed = parse_demo(location)

    def chunks(self, faults: Faults, on_bytes: Callable[[int], None]) -> Iterator[Chunk]:
        import pyarrow as pa

        from stillhouse.data.demo import VERSION, reviews

        self.columns = ["text", "label"]
        found = find_columns(self.columns, self._schema, self.name, faults)
        stream = reviews(self._rows, self._seed)
        for start in range(0, self._rows, _DEMO_CHUNK):
            rows = [next(stream) for _ in range(min(_DEMO_CHUNK, self._rows - start))]
            table = pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
            yield table_chunk(table, found, self.name, start, faults)
        self.digest = digest_json(["reviews", VERSION, self._rows, self._seed])


def open_sources(config: DataConfig, faults: Faults) -> dict[str, Source]:
    """The source of each split that has one; the faults of the others are collected under their parameter."""
    sources: dict[str, Source] = {}
    for split, parameter in SPLIT_PARAMETERS.items():
        location = config.location(split)
        if not location or check_location(parameter, location):
            continue
        try:
            sources |= _open(split, location, config)
        except Unreadable as error:
            faults.add(parameter, f"{public_name(location)}: {error.what}", error.remedy)
    return {split: sources[split] for split in SPLIT_PARAMETERS if split in sources}


def _open(split: str, location: str, config: DataConfig) -> dict[str, Source]:
    scheme = scheme_of(location)
    if scheme == "demo":
        return {split: DemoSource(location, config.schema)}
    if scheme != "hub":
        return {split: FileSource(location, config.schema)}
    from stillhouse.data.hub import HubDataset

    parsed = parse_hub(location)
    assert parsed is not None  # check_location has passed
    dataset = HubDataset(location, parsed)
    found: dict[str, Any] = {split: dataset.source(split, config.schema)}
    if split == "train":
        for other in ("validation", "test"):
            if not config.location(other) and other in dataset.splits:
                found[other] = dataset.source(other, config.schema)
                found[other].optional = True
    return found
