"""Datasets of the Hugging Face hub, streamed with the `datasets` library and pinned to a commit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from stillhouse.artifacts import digest_json, sha256_file
from stillhouse.data.columns import find_columns
from stillhouse.data.faults import Faults, Unreadable
from stillhouse.data.location import HubLocation, describe
from stillhouse.data.readers import Chunk, table_chunk
from stillhouse.data.schema import RowSchema
from stillhouse.data.sources import Source

__all__ = ["HubDataset", "HubSource"]

_BATCH_ROWS = 1 << 14
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


class HubDataset:
    """One dataset at one commit, and the splits that it has.

    Raises:
        Unreadable: it does not exist, needs a login, or the hub cannot be reached.
    """

    def __init__(self, location: str, parsed: HubLocation) -> None:
        self.location = location
        self.path = parsed.path
        self.config = parsed.config or None
        if Path(self.path).is_absolute():
            self.commit = _folder_digest(Path(self.path))
            self.revision = None
        else:
            self.commit = self.revision = _resolve(self.path, parsed.revision or None)
        names = self._call("get_dataset_split_names", config_name=self.config, revision=self.revision)
        self.splits: dict[str, str] = {}
        """The dataset's name of each of our splits that it has."""
        for split, candidates in _SPLIT_NAMES.items():
            if chosen := next((name for name in candidates if name in names), None):
                self.splits[split] = chosen
        self._only = names[0] if len(names) == 1 else None
        self._names = list(names)

    def source(self, split: str, schema: RowSchema) -> HubSource:
        """The rows for a split of ours: the dataset's split of that name, or its only one."""
        name = self.splits.get(split) or self._only
        if name is None:
            raise Unreadable(f"has no {split} split; it has: {', '.join(self._names)}.", "Choose another dataset.")
        return HubSource(self, name, schema)

    def stream(self, name: str) -> Any:
        """The `datasets.IterableDataset` of a split."""
        return self._call("load_dataset", name=self.config, revision=self.revision, split=name, streaming=True)

    def _call(self, function: str, **arguments: Any) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise Unreadable(f"needs the package `datasets` ({error}).", "pip install 'stillhouse[train]'") from None
        try:
            return getattr(datasets, function)(self.path, **arguments)
        except Exception as error:  # hub, network, file system and parsing errors share no base
            raise Unreadable(f"cannot be opened ({describe(error)}).", "Check its name, revision and config.") from None


class HubSource(Source):
    """One split of a hub dataset."""

    def __init__(self, dataset: HubDataset, split: str, schema: RowSchema) -> None:
        super().__init__()
        self.name = f"{dataset.location} ({split})"
        self._dataset = dataset
        self._split = split
        self._schema = schema

    def chunks(self, faults: Faults, on_bytes: Callable[[int], None]) -> Iterator[Chunk]:
        before = 0
        found: dict[str, str] | None = None
        try:
            stream = self._dataset.stream(self._split)
        except Unreadable as error:
            faults.add(self.name, error.what, error.remedy)
            return
        features = stream.features or {}
        tables = iter(stream.with_format("arrow").iter(batch_size=_BATCH_ROWS))
        while True:
            try:
                table = next(tables, None)
            except Exception as error:  # network, file format and declared types: their errors share no base
                faults.add(self.name, f"reading broke off ({describe(error)}).", "Try again, or download the dataset.")
                return
            if table is None:
                break
            if found is None:
                self.columns = table.column_names
                found = find_columns(self.columns, self._schema, self.name, faults)
            yield table_chunk(_named_classes(table, features), found, self.name, before, faults)
            before += table.num_rows
        if not before:
            faults.add(self.name, "is empty.", "Choose another dataset or split.")
        self.digest = digest_json([self._dataset.commit, self._dataset.config, self._split])


def _named_classes(table: pa.Table, features: Any) -> pa.Table:
    """Class ids replaced by their names where the dataset declares them; -1, the hub's "not labelled", by null."""
    for index, name in enumerate(table.column_names):
        names = getattr(features.get(name), "names", None)
        if names and pa.types.is_integer(table.schema.field(index).type):
            lookup = pa.array([*names, None], pa.string())
            ids = [i if i is not None and 0 <= i < len(names) else len(names) for i in table.column(index).to_pylist()]
            table = table.set_column(index, name, lookup.take(pa.array(ids, pa.int64())))
    return table


def _resolve(name: str, revision: str | None) -> str:
    """The commit that a branch or tag stands for now."""
    try:
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(name, revision=revision, timeout=30).sha
    except ImportError as error:
        raise Unreadable(f"needs the package `huggingface_hub` ({error}).", "pip install 'stillhouse[train]'") from None
    except Exception as error:  # the HTTP client's exception tree changes with its version
        raise Unreadable(
            f"the hub did not answer for it ({describe(error)}).",
            "Check the name, the network and, for a gated dataset, HF_TOKEN; or give files instead.",
        ) from None
    return str(commit)


def _folder_digest(folder: Path) -> str:
    if not folder.is_dir():
        raise Unreadable("there is no such folder.", "Check the path.")
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()
