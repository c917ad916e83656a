"""The smoke test: does a server give the answers that its package gives?"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, Problem, ServingError, StillhouseError
from stillhouse.tasks.front_models.request_log import RequestLog

if TYPE_CHECKING:
    from stillhouse.client import Client, Tls

__all__ = [
    "PLAIN_TEXTS",
    "TOLERANCE",
    "Asked",
    "KnownAnswer",
    "SmokeReport",
    "ask_known_answers",
    "known_answers",
    "read_answers",
    "smoke_test",
]

TOLERANCE = 1e-3
"""Largest difference of a probability to the package's own."""
PLAIN_TEXTS = ("ok", "The quick brown fox jumps over the lazy dog.", "")
"""What is asked where no row of a test split is at hand."""
_TRIES = 3
_PATIENCE = 5.0
"""Seconds, of a whole test, for a public server that refuses requests under load."""
_CONNECTIONS = 4
"""Behind one address there may be several replicas, and a connection stays with one."""
_SHOWN = 5


@dataclass(frozen=True)
class KnownAnswer:
    """What a package answers to a text."""

    text: str
    label: str = ""
    """Empty where only the release matters."""
    probabilities: tuple[float, ...] = ()
    """None where the label is enough."""


@dataclass(frozen=True)
class Asked:
    """What a server made of one known answer."""

    answer: KnownAnswer
    fault: str
    """In which way it answered otherwise; empty where it agrees."""
    passing: bool = False
    """Whether the fault is one that time may mend: nobody answers, or another release does."""
    seconds: float = math.nan
    """From question to answer, on a connection that was open; NaN where no answer came."""


@dataclass(frozen=True)
class SmokeReport:
    """What a server made of all of them."""

    model: str
    version: str
    rows: tuple[Asked, ...]

    @property
    def agreement(self) -> float:
        """Share of rows, 0 to 1, that were answered as they should be."""
        return sum(not row.fault for row in self.rows) / len(self.rows)

    def latency(self, quantile: float) -> float:
        """Milliseconds within which this share of the answers came, by the nearest rank; NaN where none came."""
        seconds = sorted(row.seconds for row in self.rows if not math.isnan(row.seconds))
        return 1000 * seconds[max(0, math.ceil(quantile * len(seconds)) - 1)] if seconds else math.nan

    def check(self, min_agreement: float = 1.0) -> None:
        """See whether it will do.

        Raises:
            ServingError: too few rows were answered as they should be; or, however few are asked for, one was not
                answered at all, or by another version.
        """
        faults = [row for row in self.rows if row.fault]
        if self.agreement >= min_agreement and not any(row.passing for row in faults):
            return
        total = len(self.rows)
        summary = f"{self.model} version {self.version} failed the smoke test on {len(faults)} of {total} rows:"
        lines = [f"{row.answer.text[:60]!r}: {row.fault}" for row in faults[:_SHOWN]]
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise ServingError("\n".join([summary, *(f"  {line}" for line in lines + more)]))


def known_answers(package: Path, rows: Sequence[str | Mapping[str, Any]]) -> list[KnownAnswer]:
    """The package's own answers, each text asked alone.

    Alone, since an encoder with dynamic INT8 activations scales them over the whole batch, so that a text's answer
    depends a little on the texts beside it. Rows that this package refuses as too long are left out: they may be those
    that another version was tested with. Where that leaves none, plain texts are asked.

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
    longest = runtime.manifest["max_text_bytes"]
    answers, changed = [], []
    for row in _short(rows, longest) or _short(PLAIN_TEXTS, longest):
        text, label = (row, None) if isinstance(row, str) else (str(row["text"]), row.get("label"))
        probabilities, labels = runtime.predict([text])
        answers.append(KnownAnswer(text, labels[0], tuple(probabilities[0].tolist())))
        if label is not None and label != labels[0]:
            changed.append(f"{text[:60]!r}: {labels[0]!r}, and {label!r} when it was evaluated")
    if changed:
        raise ServingError("the package does not answer as it did when it was evaluated.", changed[:_SHOWN])
    return answers


def _short(rows: Sequence[str | Mapping[str, Any]], longest: int) -> list[str | Mapping[str, Any]]:
    texts = [row if isinstance(row, str) else str(row["text"]) for row in rows]
    return [row for row, text in zip(rows, texts, strict=True) if len(text.encode()) <= longest]


def read_answers(path: Path) -> list[KnownAnswer]:
    """The known answers in a file: a JSON list of objects with `text`, `label` and, if wanted, `probabilities`.

    Raises:
        InputError: it is no such file; every row at fault is named.
    """
    where = str(path)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(Problem(where, f"cannot be read ({error.strerror}).")) from None
    except ValueError as error:
        raise InputError(Problem(where, f"is no JSON ({error}).")) from None
    if not isinstance(body, list) or not body:
        raise InputError(Problem(where, "is no list of known answers.", 'Write [{"text": …, "label": …}].'))
    answers, problems = [], []
    for number, row in enumerate(body, start=1):
        try:
            text, label = row["text"], row.get("label", "")
            probabilities = tuple(float(value) for value in row.get("probabilities") or ())
            if not (isinstance(text, str) and isinstance(label, str)):
                raise TypeError("text and label are strings")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(Problem(f"{where}, row {number}", f"is no known answer ({error!r})."))
            continue
        answers.append(KnownAnswer(text, label, probabilities))
    if problems:
        raise InputError(problems)
    return answers


def ask_known_answers(
    url: str,
    model: str,
    version: str,
    answers: Sequence[KnownAnswer],
    *,
    timeout: float = 30.0,
    patience: float = _PATIENCE,
    tls: Tls | None = None,
    tolerance: float = TOLERANCE,
) -> SmokeReport:
    """Ask a server for each known answer over gRPC, one at a time, over a few connections by turns.

    Args:
        url: `host:port` of the gRPC endpoint.
        model: name of the public model.
        version: the release that is to answer.
        answers: what it is to say.
        timeout: seconds for each request.
        patience: seconds, of the whole test, in which a row is asked again that nobody answers, or another release:
            a server may be just coming up, or have too much to do, and its predecessor may still be there.
        tls: encrypts the connection; None for one in the clear.
        tolerance: largest difference of a probability.

    Raises:
        InputError: the address or a file of `tls` will not do.
    """
    from stillhouse.client import Client

    deadline = time.monotonic() + patience
    rows = []
    with ExitStack() as stack:
        clients = [
            stack.enter_context(Client(url, model, timeout=timeout, retries=0, tls=tls))
            for _ in range(min(_CONNECTIONS, len(answers)))
        ]
        # The first round connects; what that takes is not measured.
        for client, answer in [*zip(clients, answers, strict=False), *zip(cycle(clients), answers, strict=False)]:
            rows.append(_ask_patiently(client, version, answer, tolerance, deadline))
            if rows[-1].passing:  # nobody there, and no time left
                rest = tuple(Asked(answer, "not asked any more.", passing=True) for answer in answers[1:])
                return SmokeReport(model, version, (rows[-1], *rest))
    return SmokeReport(model, version, tuple(rows[len(clients) :]))


def smoke_test(
    url: str,
    model: str,
    version: str,
    answers: Sequence[KnownAnswer],
    *,
    timeout: float = 30.0,
    tls: Tls | None = None,
) -> None:
    """As `ask_known_answers`, where every answer must agree.

    Raises:
        ServingError: it failed, or answered otherwise: another version, another label, or another probability.
    """
    ask_known_answers(url, model, version, answers, timeout=timeout, tls=tls).check()


def _ask_patiently(client: Client, version: str, answer: KnownAnswer, tolerance: float, deadline: float) -> Asked:
    tries = 1
    # A public server may have put someone else's text into the same batch, or have too much to do.
    while (asked := _ask(client, version, answer, tolerance)).fault and (
        tries < _TRIES or (asked.passing and time.monotonic() < deadline)
    ):
        tries += 1
        time.sleep(0.1 if tries <= _TRIES else 0.5)
    return asked


def _ask(client: Client, version: str, answer: KnownAnswer, tolerance: float) -> Asked:
    import numpy as np

    from stillhouse.client.results import plain_rows

    text = np.array([[answer.text.encode()]], dtype=np.object_)
    begin = time.monotonic()
    try:
        found = client.predict_raw({"TEXT": text}, request_id=RequestLog.PROBE_ID)
    except StillhouseError as error:
        # What was asked is at fault where the model or the text is refused, which no waiting mends.
        return Asked(answer, f"no answer: {error}", passing=not isinstance(error, InputError))
    seconds = time.monotonic() - begin
    if found.release != version:
        return Asked(answer, f"version {found.release} answered.", passing=True, seconds=seconds)
    (row,) = plain_rows(found.outputs, found.release)
    return Asked(answer, _difference(row, answer, tolerance), seconds=seconds)


def _difference(row: Mapping[str, Any], answer: KnownAnswer, tolerance: float) -> str:
    if answer.label and row["LABEL"] != answer.label:
        return f"answered {row['LABEL']!r} for {answer.label!r}."
    if not answer.probabilities:
        return ""
    served: Any = row["PROBABILITIES"]
    served = served if isinstance(served, list) else [served]
    if len(served) != len(answer.probabilities):
        return f"gave {len(served)} probabilities for {len(answer.probabilities)}."
    difference = max(abs(x - y) for x, y in zip(served, answer.probabilities, strict=True))
    # Written so that NaN fails too.
    return "" if difference <= tolerance else f"a probability differs by {difference:.2g}."
