"""What is asked of a server and how its answers are read, without any input or output.

Each question is a plan: a generator that yields a `Call` or a `Pause`, is sent the answer to the call or thrown its
`grpc.RpcError`, and returns the result. The two clients carry plans out, one in threads and one in an event loop, so
that batching, retries, deadlines and errors are written once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from stillhouse.client.connection import Connection, seconds_problems
from stillhouse.client.failures import explain
from stillhouse.client.results import ServedModel, plain_rows, read_results
from stillhouse.client.retries import Attempts, RetryBudget
from stillhouse.errors import InputError, Problem, ServingError

__all__ = ["Call", "Pause", "Plan", "Protocol", "RawAnswer", "Texts", "encode_texts", "in_order"]

T = TypeVar("T")
Texts = Sequence["str | bytes"]

_SHOWN = 20  # problems of one list that are told
_LOOKUPS = (16, 32, 64)
"""How often a release that answered is looked up, until its successor is asked instead. Replicas behind one address may
be at different releases for a while, as during a canary, and take turns: one of n is met within n lookups."""


@dataclass(frozen=True)
class Call:
    """Call a method of Triton's gRPC service."""

    method: str
    request: Any
    timeout: float
    """Seconds."""


@dataclass(frozen=True)
class Pause:
    """Do nothing for some seconds."""

    seconds: float


Plan = Generator["Call | Pause", Any, T]


@dataclass(frozen=True)
class RawAnswer:
    """What a model answered, as it is."""

    outputs: dict[str, NDArray[Any]]
    """Every output by its name; BYTES as arrays of objects."""
    release: str
    """The version that answered."""


class Protocol:
    """Plans for one model at one address.

    Args:
        connection: where it is.
        model: name of the public model.
        timeout: seconds for each request, its retries included.
        retries: how often a request may be sent again.
        batch_size: texts in one request; None for as many as the model takes.
        concurrency: requests of one list under way at once.

    Raises:
        InputError: something is wrong with these values; all of it is told.
    """

    def __init__(
        self,
        connection: Connection,
        model: str,
        *,
        timeout: float,
        retries: int,
        batch_size: int | None,
        concurrency: int,
    ) -> None:
        problems = connection.problems()
        if not model:
            problems.append(Problem("model", "is empty.", "Give the name by which the model is served."))
        problems += seconds_problems("timeout", timeout)
        counts = {"retries": (retries, 0), "batch_size": (batch_size, 1), "concurrency": (concurrency, 1)}
        problems += [
            Problem(name, f"{value} will not do.", f"Give {lowest} or more.")
            for name, (value, lowest) in counts.items()
            if value is not None and value < lowest
        ]
        if problems:
            raise InputError(problems)
        self._url, self._model = connection.url, model
        self._timeout, self._retries, self._batch_size = timeout, retries, batch_size
        self._budget = RetryBudget()
        self._current: ServedModel | None = None
        self._releases: dict[str, ServedModel] = {}

    def split(self, texts: Sequence[bytes]) -> Plan[list[Sequence[int]]]:
        """Row numbers of each request, as many in one as the model takes and `batch_size` allows.

        A list of several requests is sorted by length, the longest first: texts of like length make a batch with little
        padding, and the last request to end is a short one.
        """
        model = self._current or (yield from self._describe(self._attempts()))
        size = min(model.max_batch_size, self._batch_size or model.max_batch_size)
        if len(texts) <= size:
            return [range(len(texts))]
        return _pieces(sorted(range(len(texts)), key=lambda row: len(texts[row]), reverse=True), size)

    def ask(self, texts: Sequence[bytes], rows: Sequence[int], *, typed: bool, request_id: str = "") -> Plan[list[Any]]:
        """Answers to some of the texts, sent in one request.

        Args:
            texts: the whole list, so that a refused text can be named.
            rows: which of them to send.
            typed: results of the model's task; else every output by its name.
            request_id: what the server sees as the request's id.
        """
        attempts = self._attempts()
        request = service_pb2.ModelInferRequest(model_name=self._model, id=request_id)
        block = np.array([texts[row] for row in rows], dtype=np.object_).reshape(-1, 1)
        _add_input(request, "TEXT", block)
        for lookups in _LOOKUPS:
            try:
                response = yield from self._call("ModelInfer", request, attempts)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise self._explain(error) from None
                refusal = error
                break
            answer = _read(response)
            if not typed:
                return plain_rows(answer.outputs, answer.release)
            # Labels are those of the release that answered, which may have changed since the last answer. One that was
            # replaced in this very moment cannot tell its labels any more: its successor is asked instead.
            if model := (yield from self._release(answer.release, attempts, lookups)):
                return read_results(model, answer.outputs, answer.release)
        else:
            raise ServingError(f"{self._url} changes the release of {self._model!r} faster than it can be asked.")
        model = yield from self._describe(attempts)
        if len(rows) > model.max_batch_size:  # a new release takes smaller requests than the last one
            answers = []
            for piece in _pieces(rows, model.max_batch_size):
                answers += yield from self.ask(texts, piece, typed=typed, request_id=request_id)
            return answers
        raise _refused(texts, rows, model) or self._explain(refusal, _place(rows))

    def infer(self, inputs: Mapping[str, Any], outputs: Sequence[str], request_id: str = "") -> Plan[RawAnswer]:
        """The model's answer to one request as it is given."""
        request = service_pb2.ModelInferRequest(model_name=self._model, id=request_id)
        for name, value in inputs.items():
            _add_input(request, name, np.asarray(value))
        for name in outputs:
            request.outputs.add(name=name)
        try:
            response = yield from self._call("ModelInfer", request, self._attempts())
        except grpc.RpcError as error:
            raise self._explain(error) from None
        return _read(response)

    def _attempts(self) -> Attempts:
        return Attempts(self._timeout, self._retries, self._budget)

    def _call(self, method: str, request: Any, attempts: Attempts) -> Plan[Any]:
        """The answer to a call, which is repeated where that is safe; raises the last `grpc.RpcError`."""
        while True:
            try:
                return (yield Call(method, request, attempts.remaining()))
            except grpc.RpcError as error:
                seconds = attempts.pause(error)
                if seconds is None:
                    raise
            yield Pause(seconds)

    def _describe(self, attempts: Attempts) -> Plan[ServedModel]:
        """The model as it is served now."""
        request = service_pb2.ModelConfigRequest(name=self._model)
        try:
            self._current = _described((yield from self._call("ModelConfig", request, attempts)).config)
        except grpc.RpcError as error:
            raise self._explain(error) from None
        return self._current

    def _release(self, release: str, attempts: Attempts, lookups: int) -> Plan[ServedModel | None]:
        """The model as a release describes it; None if there is no such release any more, by so many lookups."""
        request = service_pb2.ModelConfigRequest(name=self._model, version=release)
        for _ in range(lookups):
            if release in self._releases:
                break
            try:
                answer = yield Call("ModelConfig", request, attempts.remaining())
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                    raise self._explain(error) from None
            else:
                self._releases[release] = _described(answer.config)
        return self._releases.get(release)

    def _explain(self, error: grpc.RpcError, where: str = "inputs") -> Exception:
        return explain(error, self._url, self._model, self._timeout, where)


def encode_texts(texts: Texts) -> list[bytes]:
    """Texts in UTF-8.

    Raises:
        InputError: an item is no text, or cannot be written in UTF-8; each one is named.
    """
    if isinstance(texts, (str, bytes)):
        what = "is one text, where a list of texts is expected."
        raise InputError(Problem("texts", what, "Give [text], or use predict_one."))
    rows, problems = [], []
    for index, text in enumerate(texts):
        try:
            if isinstance(text, bytes):
                text.decode()
            rows.append(text if isinstance(text, bytes) else text.encode())
        except UnicodeError as error:
            problems.append(Problem(f"texts[{index}]", f"is not UTF-8 ({error.reason} at {error.start})."))  # type: ignore[attr-defined]
        except AttributeError:
            problems.append(Problem(f"texts[{index}]", f"is no text but of the type {type(text).__name__}."))
    if problems:
        raise InputError(_few(problems))
    return rows


def _refused(texts: Sequence[bytes], rows: Sequence[int], model: ServedModel) -> InputError | None:
    """Every text of the list that is too long, where the refused request holds one; None if it holds none."""
    limit = model.max_text_bytes
    if limit is None or all(len(texts[row]) <= limit for row in rows):
        return None
    return InputError(
        _few(
            [
                Problem(f"texts[{row}]", f"has {len(text)} bytes; the limit of {model.name!r} is {limit}.")
                for row, text in enumerate(texts)
                if len(text) > limit
            ]
        )
    )


def _few(problems: list[Problem]) -> list[Problem]:
    if len(problems) <= _SHOWN:
        return problems
    return [*problems[:_SHOWN], Problem("texts", f"{len(problems) - _SHOWN} more cannot be sent.")]


def in_order(blocks: Sequence[Sequence[int]], answers: Iterable[Sequence[T]]) -> list[T]:
    """Answers of several requests in the order of their texts.

    Args:
        blocks: row numbers of each request.
        answers: of each request, one for each of its rows.
    """
    found = {
        row: answer
        for block, part in zip(blocks, answers, strict=True)
        for row, answer in zip(block, part, strict=True)
    }
    return [found[row] for row in range(len(found))]


def _place(rows: Sequence[int]) -> str:
    return f"texts[{rows[0]}]" if len(rows) == 1 else f"one of {len(rows)} texts"


def _pieces(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def _add_input(request: Any, name: str, value: NDArray[Any]) -> None:
    if value.dtype.kind in "US":
        value = value.astype(np.object_)
    datatype = np_to_triton_dtype(value.dtype)
    if datatype is None:
        raise InputError(Problem(name, f"Triton has no type for {value.dtype}."))
    request.inputs.add(name=name, datatype=datatype, shape=value.shape)
    if datatype == "BYTES":
        raw = serialize_byte_tensor(value).item() if value.size else b""
    else:
        raw = np.ascontiguousarray(value).tobytes()
    request.raw_input_contents.append(raw)


def _read(response: Any) -> RawAnswer:
    result = InferResult(response)
    return RawAnswer({output.name: result.as_numpy(output.name) for output in response.outputs}, response.model_version)


def _described(config: Any) -> ServedModel:
    return ServedModel(
        name=config.name,
        max_batch_size=max(1, config.max_batch_size),
        outputs=tuple(output.name for output in config.output),
        parameters={key: value.string_value for key, value in config.parameters.items()},
    )
