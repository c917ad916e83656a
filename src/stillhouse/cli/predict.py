"""`stillhouse predict`: ask a served model about texts, over gRPC."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.text import Text

from stillhouse.cli.output import print_json, stdout
from stillhouse.errors import InputError, Problem
from stillhouse.state import home

if TYPE_CHECKING:
    from stillhouse.client import Tls

__all__ = ["endpoint", "predict"]

_BLOCK = 256
"""Lines read from standard input before their answers are printed."""


def predict(texts: Sequence[str], url: str | None, model: str | None, *, tls: Tls | None = None, as_json: bool) -> None:
    """Print the model's answer to each text; without texts, to each line of standard input.

    Args:
        texts: what to ask about.
        url: `host:port` of the gRPC endpoint; the local server's without it.
        model: name of the served model; the local server's without it.
        tls: to connect encrypted.
        as_json: one JSON list of objects: `text`, every output of the model by its name, and `model_version`.

    Raises:
        InputError: there is nothing to ask, nobody to ask, or the model refuses a text.
        ServingError: the server cannot be reached or failed.
    """
    from stillhouse.client import predict_texts

    url, model = endpoint(url, model)
    console = stdout()
    answers: list[dict[str, Any]] = []
    asked = 0
    for block in _blocks(texts or _lines()):
        try:
            answered = predict_texts(url, model, block, tls=tls)
            rows = [{"text": text, **row} for text, row in zip(block, answered, strict=True)]
        except InputError as error:
            raise InputError(_counted(problem, asked) for problem in error.problems) from None
        asked += len(block)
        if as_json:
            answers += rows
            continue
        for row in rows:
            console.print(_line(row), soft_wrap=True)
    if as_json:
        print_json(answers)


def endpoint(url: str | None, model: str | None) -> tuple[str, str]:
    """The address and the model to ask, the local server's where they are not given.

    Raises:
        InputError: one is not given, and no local server runs.
    """
    if url and model:
        return url, model
    from stillhouse.serving.server import server_status

    status = server_status(home())
    if status is None or status.status not in ("ready", "restarting", "starting"):
        found = f"the local server of {home()} is {status.status}" if status else f"no server runs in {home()}"
        missing = [name for name, value in (("--url", url), ("--model", model)) if not value]
        raise InputError(
            Problem(
                " and ".join(missing),
                f"{found}.",
                "Start one with `stillhouse serve`, or say which to ask.",
            )
        )
    return url or status.grpc_url, model or status.model


def _lines() -> Iterator[str]:
    """Lines of standard input, blank ones too, so that answers and lines go together."""
    if sys.stdin.isatty():
        raise InputError(
            Problem("TEXT", "there is no text to ask about.", "Give one or more, or lines on standard input.")
        )
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise InputError(
                Problem(f"standard input, line {number}", f"is not UTF-8 ({error.reason} at byte {error.start}).")
            ) from None


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while block := list(islice(remaining, _BLOCK)):
        yield block


def _counted(problem: Problem, asked: int) -> Problem:
    """The problem with its place in the block, `texts[3]` or `texts[3:8]`, as a place in all texts, from 1 on."""
    if place := re.fullmatch(r"texts\[(\d+)(?::(\d+))?\]", problem.where):
        first = asked + int(place[1]) + 1
        return replace(problem, where=f"texts {first} to {asked + int(place[2])}" if place[2] else f"text {first}")
    return problem


def _line(row: dict[str, Any]) -> Text:
    """One answer for people: what the model says, how sure it is, and the text."""
    outputs = {name: value for name, value in row.items() if name not in ("text", "model_version")}
    said = outputs.pop("LABEL", None)
    probabilities = outputs.pop("PROBABILITIES", None)
    line = Text()
    if said is not None:
        line.append(f"{said:<12}", style="bold green")
    if probabilities is not None:
        best = max(probabilities) if isinstance(probabilities, list) else probabilities
        line.append(f" {best:.3f} ", style="cyan")
    if outputs:
        line.append(f" {json.dumps(outputs, ensure_ascii=False)} ")
    return line.append(f" {row['text']}")
