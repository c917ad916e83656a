"""Reading a dataset artifact back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import DatasetManifest
from stillhouse.errors import InputError, ManifestError, Problem

if TYPE_CHECKING:
    import datasets

__all__ = ["load_split", "read_split"]


def read_split(folder: str | os.PathLike[str], split: str) -> dict[str, list[Any]]:
    """All rows of a split in memory: a list per column, for example `text` (str) and `label` (int).

    Raises:
        ManifestError: the folder's manifest is missing or not understood, or the split's file is missing or unreadable.
        InputError: the dataset has no such split.
    """
    import pyarrow as pa
    import pyarrow.parquet

    path = _split_file(folder, split)
    try:
        columns: dict[str, list[Any]] = pyarrow.parquet.read_table(path).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(str(path), f"cannot be read ({error}).", "Produce the dataset again.") from None
    return columns


def load_split(folder: str | os.PathLike[str], split: str) -> datasets.Dataset:
    """A split as a `datasets.Dataset`, which the trainer takes; columns as in `read_split`.

    Raises:
        ManifestError: the folder's manifest is missing or not understood, or the split's file is missing or unreadable.
        InputError: the dataset has no such split.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    path = _split_file(folder, split)
    try:
        # Straight from the table: `Dataset.from_parquet` would keep a second copy in the user's cache folder.
        return datasets.Dataset(pyarrow.parquet.read_table(path))
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(str(path), f"cannot be read ({error}).", "Produce the dataset again.") from None


def _split_file(folder: str | os.PathLike[str], split: str) -> Path:
    manifest = DatasetManifest.load(folder)
    if split not in manifest.splits:
        raise InputError(Problem("split", f"{folder} has no {split!r}; it has: {', '.join(manifest.splits)}."))
    path = Path(folder) / f"{split}.parquet"
    if not path.is_file():
        raise ManifestError(str(path), "is missing.", "Produce the dataset again.")
    return path
