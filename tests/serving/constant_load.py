"""Constant load on a server, by plain tritonclient without retries, that keeps a record of every request."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from stillhouse.client import Tls


@dataclass(frozen=True)
class Answer:
    sent: float
    received: float
    text: str
    version: str = ""
    probabilities: tuple[float, ...] = ()
    error: str = ""


def turned_away(error: str) -> bool:
    """Whether the server refused a request because it was asked too much."""
    return bool(re.search("is overloaded|waited too long", error))


def lost(failed: Iterable[Answer], end: float) -> list[Answer]:
    """Those of the failed requests that a server which ended at the time `end` should have answered or refused.

    Who comes after the end finds nobody, also a request from before it that was still waiting for a connection.
    INTERNAL is what accepted requests get that do not reach the encoder.
    """
    return [
        answer
        for answer in failed
        if "StatusCode.INTERNAL" in answer.error
        or not (answer.sent > end or ("Failed to connect" in answer.error and answer.received > end))
    ]


class Load:
    """What was asked and answered, in seconds of `time.monotonic`."""

    def __init__(
        self, url: str, model: str, texts: list[str], threads: int, moves: bool, tls: Tls | None, rows: int
    ):  # fmt: skip
        self._url, self._model, self._texts, self._moves, self._rows = url, model, texts, moves, rows
        files = {name: str(path) for name, path in vars(tls).items() if path} if tls else {}
        self._tls = {"ssl": tls is not None, **files}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]
        self.answers: list[Answer] = []

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.error]

    @property
    def answered(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.error]

    def start(self):
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", int(self._moves))]
        with grpc.InferenceServerClient(self._url, channel_args=options, **self._tls) as client:
            turn = number
            while not self._stop.is_set():
                text = self._texts[turn % len(self._texts)]
                turn += 1
                tensor = grpc.InferInput("TEXT", [self._rows, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[text.encode()]] * self._rows, dtype=np.object_))
                sent = time.monotonic()
                try:
                    result = client.infer(self._model, [tensor], client_timeout=30)
                    row = tuple(result.as_numpy("PROBABILITIES")[0].tolist())
                    version = result.get_response().model_version
                    self.answers.append(Answer(sent, time.monotonic(), text, version, row))
                except InferenceServerException as error:
                    self.answers.append(Answer(sent, time.monotonic(), text, error=str(error)))
                    time.sleep(0.02)


@contextmanager
def constant_load(
    url: str, model: str, texts: list[str], *, threads: int = 4, moves: bool = False, tls: Tls | None = None,
    rows: int = 1,
):  # fmt: skip
    """Load while the block runs.

    Args:
        url, model, texts: whom to ask what, in turn.
        threads: callers, each with a connection of its own.
        moves: a request that meets the end of its connection, and has not left, goes to the next one; as in any client
            that does not forbid gRPC that.
        tls: as for `Client`.
        rows: how often each request holds its text.
    """
    load = Load(url, model, texts, threads, moves, tls, rows)
    load.start()
    try:
        yield load
    finally:
        load.stop()
