"""Typed results, by the task that a model's configuration names.

A new task is a frozen dataclass and a function in `READERS`. Shapes in this file: n texts, c labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import InputError, Problem, ServingError

__all__ = ["READERS", "Classification", "Result", "ServedModel", "plain_rows", "read_results"]


@dataclass(frozen=True)
class Classification:
    """What a classifier says about one text."""

    label: str
    """Name of the most probable label."""
    probability: float
    """Its probability, 0 to 1."""
    probabilities: dict[str, float]
    """Probability of every label by its name, in the model's order; they sum to 1."""
    release: str
    """The registered version that answered."""


Result = Classification
"""What `predict` returns for a text; grows into a union with the tasks."""


@dataclass(frozen=True)
class ServedModel:
    """What the configuration of a served model says about it."""

    name: str
    max_batch_size: int
    """Texts that one request may hold, at least 1."""
    outputs: tuple[str, ...]
    parameters: Mapping[str, str]

    @property
    def label_names(self) -> list[str]:
        """Name of each label id."""
        try:
            return [str(name) for name in json.loads(self.parameters["label_names"])]
        except (KeyError, ValueError, TypeError):
            raise ServingError(f"the configuration of {self.name!r} does not say the names of its labels.") from None

    @property
    def max_text_bytes(self) -> int | None:
        """Longer texts, in UTF-8, are refused; None if the configuration does not say."""
        value = self.parameters.get("max_text_bytes", "")
        return int(value) if value.isdigit() else None


Reader = Callable[[ServedModel, Mapping[str, Any], str], list[Result]]
"""(model, its outputs by name, the release that answered) to n results."""


def read_classification(model: ServedModel, outputs: Mapping[str, Any], release: str) -> list[Result]:
    """Results of `PROBABILITIES` FP32 [n, c] and `LABEL` BYTES [n, 1]."""
    names = model.label_names
    labels = [label.decode() for label in outputs["LABEL"].reshape(-1).tolist()]
    rows = outputs["PROBABILITIES"].tolist()
    if any(len(row) != len(names) for row in rows) or not set(labels) <= set(names):
        raise ServingError(f"{model.name!r} answered with other labels than its configuration names: {names}.")
    results = []
    for label, row in zip(labels, rows, strict=True):
        probabilities = dict(zip(names, row, strict=True))
        results.append(Classification(label, probabilities[label], probabilities, release))
    return results


READERS: dict[str, Reader] = {"classification": read_classification}
"""How the outputs of each task become results."""


def read_results(model: ServedModel, outputs: Mapping[str, Any], release: str) -> list[Result]:
    """Typed results of a model's outputs.

    Raises:
        InputError: this client knows no results of the model's task.
        ServingError: the outputs are not those of its task.
    """
    task = model.parameters.get("task", "")
    if task not in READERS:
        says = f"is of the task {task!r}" if task else "does not say of which task it is"
        what = f"{model.name!r} {says}; typed results are known of: {', '.join(READERS)}."
        raise InputError(Problem("model", what, "Package it anew, update Stillhouse, or use predict_raw."))
    try:
        return READERS[task](model, outputs, release)
    except (KeyError, AttributeError, ValueError) as error:
        raise ServingError(f"{model.name!r} does not answer as a model for {task} does ({error!r}).") from None


def plain_rows(outputs: Mapping[str, Any], release: str) -> list[dict[str, Any]]:
    """Each row of any model's outputs as plain Python values by name, and `model_version`.

    An output with one element per row is that element, bytes are decoded, others are lists.
    """
    columns = {name: [_plain(row) for row in column] for name, column in outputs.items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{**row, "model_version": release} for row in rows]


def _plain(row: Any) -> Any:
    values = [value.decode() if isinstance(value, bytes) else value for value in row.reshape(-1).tolist()]
    return values[0] if row.size == 1 else values
