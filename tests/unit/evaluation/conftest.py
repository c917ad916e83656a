from __future__ import annotations

from pathlib import Path

import pytest
from tiny_artifacts import evaluate_tiny, write_all

from stillhouse.artifacts import EvaluationManifest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a dataset and of three `packages` artifacts; not to be changed."""
    return write_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def evaluated(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationManifest, Path]:
    """The evaluation of `tiny`, and its folder; not to be changed."""
    root = tmp_path_factory.mktemp("evaluated")
    return evaluate_tiny(root, tiny, policy="memory"), root / "evaluation"
