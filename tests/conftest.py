"""Fixtures for tests of several folders."""

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
