"""The smoke test: does a server give the answers that its package gives?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import InputError, Problem, ServingError, StillhouseError
from stillhouse.tasks.front_models.request_log import RequestLog

__all__ = ["TOLERANCE", "KnownAnswer", "known_answers", "smoke_test"]

TOLERANCE = 1e-3
"""Largest difference of a probability to the package's own."""
_TRIES = 3
_PATIENCE = 5.0
"""Seconds, of a whole test, for a public server that refuses requests under load."""
_SHOWN = 5
_REFUSED = "no answer"


@dataclass(frozen=True)
class KnownAnswer:
    """What a package answers to a text."""

    text: str
    label: str
    probabilities: tuple[float, ...]


def known_answers(package: Path, rows: Sequence[str | Mapping[str, Any]]) -> list[KnownAnswer]:
    """The package's own answers, each text asked alone.

    Alone, since an encoder with dynamic INT8 activations scales them over the whole batch, so that a text's answer
    depends a little on the texts beside it.

    Args:
        package: folder of the package.
        rows: texts; or mappings with `text` and, where it is known from the evaluation, `label`.

    Raises:
        InputError: there is no row to test with.
        ServingError: the package does not give the labels that it gave when it was evaluated.
    """
    if not rows:
        raise InputError(Problem("smoke_rows", "there are none.", "Give at least one row of the test split."))
    from stillhouse.serving.runtime import PackageRuntime

    runtime = PackageRuntime(package)
    answers, changed = [], []
    for row in rows:
        text, label = (row, None) if isinstance(row, str) else (str(row["text"]), row.get("label"))
        probabilities, labels = runtime.predict([text])
        answers.append(KnownAnswer(text, labels[0], tuple(probabilities[0].tolist())))
        if label is not None and label != labels[0]:
            changed.append(f"{text[:60]!r}: {labels[0]!r}, and {label!r} when it was evaluated")
    if changed:
        raise ServingError("the package does not answer as it did when it was evaluated.", changed[:_SHOWN])
    return answers


def smoke_test(url: str, model: str, version: str, answers: Sequence[KnownAnswer], *, timeout: float = 30.0) -> None:
    """Ask a server for each known answer over gRPC.

    Raises:
        ServingError: it failed, or answered otherwise: another version, another label, or another probability.
    """
    faults = []
    deadline = time.monotonic() + _PATIENCE
    for answer in answers:
        tries = 1
        # A public server may have put someone else's text into the same batch, or have too much to do.
        while (fault := _fault(url, model, version, answer, timeout)) and (
            tries < _TRIES or (fault.startswith(_REFUSED) and time.monotonic() < deadline)
        ):
            tries += 1
            time.sleep(0.1)
        if fault:
            faults.append(f"{answer.text[:60]!r}: {fault}")
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        summary = f"{model} version {version} failed the smoke test on {len(faults)} of {len(answers)} rows:"
        raise ServingError("\n".join([summary, *(f"  {line}" for line in faults[:_SHOWN] + more)]))


def _fault(url: str, model: str, version: str, answer: KnownAnswer, timeout: float) -> str:
    from stillhouse.client import predict_texts

    try:
        (row,) = predict_texts(url, model, [answer.text], timeout=timeout, request_id=RequestLog.PROBE_ID)
    except StillhouseError as error:
        return f"{_REFUSED}: {error}"
    if row["model_version"] != version:
        return f"version {row['model_version']} answered."
    if row["LABEL"] != answer.label:
        return f"answered {row['LABEL']!r} for {answer.label!r}."
    served: Any = row["PROBABILITIES"]
    served = served if isinstance(served, list) else [served]
    difference = max(abs(x - y) for x, y in zip(served, answer.probabilities, strict=True))
    # Written so that NaN fails too.
    return "" if difference <= TOLERANCE else f"a probability differs by {difference:.2g}."
