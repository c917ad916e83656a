"""What to read and how to split it: the parameters of `inspect_source` and `prepare_dataset`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stillhouse.data.location import SPLIT_PARAMETERS, check_location
from stillhouse.data.schema import RowSchema
from stillhouse.errors import Problem

__all__ = ["DataConfig"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the rows are, which columns hold what, and how they become train, validation and test."""

    task: str
    """Name of the task, recorded in the manifest."""
    schema: RowSchema
    """The columns to read."""
    data: str
    """Rows to train on, and to make the missing splits of: a file or folder (CSV, TSV, JSONL, Parquet; path, `s3://`,
    `gs://` or `https://`), `hub://owner/name[@revision][:config]`, or `demo://reviews[?rows=N&seed=S]`."""
    validation_data: str = ""
    """Rows to choose the best epoch on; empty: split off `data`."""
    test_data: str = ""
    """Rows to measure on, read by nothing else; empty: split off `data`."""
    max_train_rows: int = 0
    """Keep a seeded, stratified random sample of so many rows; 0: all."""
    max_validation_rows: int = 0
    """As `max_train_rows`, for validation."""
    max_test_rows: int = 0
    """As `max_train_rows`, for test."""
    validation_fraction: float = 0.1
    """Share of `data` that becomes validation where `validation_data` is empty, between 0 and 1."""
    test_fraction: float = 0.1
    """Share of `data` that becomes test where `test_data` is empty, between 0 and 1."""
    seed: int = 42
    """Which rows go where: the same seed and rows give the same splits on any machine."""

    def location(self, split: str) -> str:
        """The location given for a split: `train`, `validation` or `test`; empty where there is none."""
        return str(getattr(self, SPLIT_PARAMETERS[split])).strip()

    def limit(self, split: str) -> int:
        """The greatest number of rows of a split; 0: no limit."""
        return int(getattr(self, f"max_{split}_rows"))

    def problems(self) -> list[Problem]:
        """Everything wrong with the parameters themselves, without reading any source."""
        problems = []
        if not self.data.strip():
            problems.append(
                Problem("data", "is empty.", "Give a file, a folder, a URL, a hub:// dataset, or demo://reviews.")
            )
        for split, parameter in SPLIT_PARAMETERS.items():
            if location := self.location(split):
                problems += check_location(parameter, location)
        problems += self._column_problems()
        for split in SPLIT_PARAMETERS:
            if self.limit(split) < 0:
                problems.append(Problem(f"max_{split}_rows", f"is {self.limit(split)}.", "Give 0 (all) or more."))
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 < value < 1):
                problems.append(Problem(name, f"is {value}.", "Give a number between 0 and 1, for example 0.1."))
        if not problems and not self.validation_data and not self.test_data:
            total = self.validation_fraction + self.test_fraction
            if total >= 1:
                problems.append(
                    Problem(
                        "validation_fraction, test_fraction",
                        f"are {total:g} together and leave no rows to train on.",
                        "Lower them.",
                    )
                )
        if not 0 <= self.seed < 2**32:
            problems.append(Problem("seed", f"is {self.seed}.", "Give an integer from 0 to 4294967295."))
        return problems

    def _column_problems(self) -> list[Problem]:
        problems = []
        seen: dict[str, str] = {}
        for column in self.schema.columns:
            parameter = f"{column.name}_column"
            if not column.source.strip():
                problems.append(Problem(parameter, "is empty.", "Give the name of a column of the source."))
            elif column.source in seen:
                problems.append(
                    Problem(
                        parameter,
                        f"names the same column as {seen[column.source]}: {column.source!r}.",
                        "Each needs a column of its own.",
                    )
                )
            else:
                seen[column.source] = parameter
        return problems
