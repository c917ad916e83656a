"""Fixtures for tests of several folders, and the order of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from helm_binary import HelmMissing, find_helm


@pytest.fixture(scope="session")
def helm() -> Path:
    """The real helm binary."""
    try:
        return find_helm()
    except HelmMissing as missing:
        pytest.skip(str(missing))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The files that take minutes begin first, so that no worker is left alone with one at the end.
    items.sort(key=lambda item: "e2e" not in item.path.parts)
