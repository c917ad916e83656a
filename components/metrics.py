"""Write the metrics artifacts of a step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kfp import dsl

__all__ = ["log_confusion_matrix", "log_metrics"]

# kfp keeps metrics in an artifact's metadata and writes no file, and kfp.local takes an artifact without a file for one
# that was deleted: a step with such an output would never be found in its cache. So each gets a file as well.


def log_metrics(artifact: dsl.Metrics, values: Mapping[str, float]) -> None:
    """Show the values in the UI, and write them as JSON to the artifact's file."""
    for name, value in values.items():
        artifact.log_metric(name, value)
    Path(artifact.path).write_text(json.dumps(dict(values), indent=1) + "\n", encoding="utf-8")


def log_confusion_matrix(
    artifact: dsl.ClassificationMetrics, labels: Sequence[str], counts: Sequence[Sequence[int]]
) -> None:
    """Show the c by c counts, true by predicted, in the UI where there are any, and write them as JSON."""
    if labels:
        artifact.log_confusion_matrix(list(labels), [list(row) for row in counts])
    body = {"labels": list(labels), "counts": [list(row) for row in counts]}
    Path(artifact.path).write_text(json.dumps(body) + "\n", encoding="utf-8")
