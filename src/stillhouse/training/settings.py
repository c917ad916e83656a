"""What of a training's settings determines it, and what of them its manifest records."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import digest_json
from stillhouse.training import ranks

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["hyperparameters", "training_key"]


def training_key(name: str, config: DataclassInstance, **determining: Any) -> str:
    """A name with a digest of all that determines the training; where checkpoints are kept does not."""
    settings = {**_fields(config, "checkpoint_dir"), **_processes()}
    return f"{name}-{digest_json({'settings': settings, **determining})[:16]}"


def hyperparameters(config: DataclassInstance) -> dict[str, Any]:
    """What a manifest records of a training's settings."""
    return {**_fields(config, "name", "checkpoint_dir", "code_version"), **_processes()}


def _fields(config: DataclassInstance, *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in left_out}


def _processes() -> dict[str, int]:
    """How many train together, where several do: they decide what a step's rows are."""
    return {"processes": ranks.world_size()} if ranks.world_size() > 1 else {}
