from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.config import DataConfig
from stillhouse.data.schema import Column, RowSchema

ConfigFactory = Callable[..., DataConfig]


@pytest.fixture
def config_for() -> ConfigFactory:
    """A config for a location, with `text` and `label` columns unless told otherwise."""

    def make(data: object, *, text: str = "text", label: str = "label", **fields: Any) -> DataConfig:
        schema = RowSchema((Column("text", text, "text"), Column("label", label, "class")))
        return DataConfig(task="classification", schema=schema, data=str(data), **fields)

    return make


@pytest.fixture
def shared() -> Path:
    """The folder of public data sets beside the repository."""
    folder = Path(__file__).resolve().parents[3].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public data sets are not beside the repository")
    return folder


@pytest.fixture
def rows() -> list[tuple[str, str]]:
    """40 rows, three in four of them `a`; texts with quotes, commas, line breaks and letters beyond ASCII."""
    return [(f'row {i}: "naïve", ça va\n雪 {i * i}', "b" if i % 4 == 3 else "a") for i in range(40)]
