"""Constant load on a server, without retries, that keeps a record of every request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from stillhouse.client import Client, Tls
from stillhouse.errors import StillhouseError

Ask = Callable[[str], tuple[str, tuple[float, ...]]]
"""From a text to the version that answered and its probabilities."""


@dataclass(frozen=True)
class Answer:
    sent: float
    received: float
    text: str
    version: str = ""
    probabilities: tuple[float, ...] = ()
    error: str = ""


class Load:
    """What was asked and answered by plain tritonclient, in seconds of `time.monotonic`."""

    def __init__(self, url: str, model: str, texts: list[str], threads: int):
        self._url, self._model, self._texts = url, model, texts
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
        with self.connect() as ask:
            turn = number
            while not self._stop.is_set():
                text = self._texts[turn % len(self._texts)]
                turn += 1
                sent = time.monotonic()
                try:
                    version, row = ask(text)
                    self.answers.append(Answer(sent, time.monotonic(), text, version, row))
                except (InferenceServerException, StillhouseError) as error:
                    shown = f"{type(error).__name__}: {error}"
                    self.answers.append(Answer(sent, time.monotonic(), text, error=shown))
                    time.sleep(0.02)

    @contextmanager
    def connect(self) -> Iterator[Ask]:
        """A connection of one thread's own."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        with grpc.InferenceServerClient(self._url, channel_args=options) as client:

            def ask(text: str) -> tuple[str, tuple[float, ...]]:
                tensor = grpc.InferInput("TEXT", [1, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
                result = client.infer(self._model, [tensor], client_timeout=30)
                row = tuple(result.as_numpy("PROBABILITIES")[0].tolist())
                return result.get_response().model_version, row

            yield ask


class ClientLoad(Load):
    """The same by `stillhouse.client`, with its retries off.

    What gRPC itself sends once more stays on: a request that never left, since its connection was about to end. Servers
    that end connections by age rely on it.

    Args:
        url, model, texts, threads: as for `Load`.
        rows: how often each request holds its text.
        tls: as for `Client`.
    """

    def __init__(
        self, url: str, model: str, texts: list[str], threads: int, *, rows: int = 1, tls: Tls | None = None
    ):  # fmt: skip
        super().__init__(url, model, texts, threads)
        self._rows, self._tls = rows, tls

    @contextmanager
    def connect(self) -> Iterator[Ask]:
        with Client(self._url, self._model, retries=0, timeout=30, tls=self._tls) as client:

            def ask(text: str) -> tuple[str, tuple[float, ...]]:
                block = np.array([[text.encode()]] * self._rows, dtype=np.object_)
                found = client.predict_raw({"TEXT": block})
                return found.release, tuple(found.outputs["PROBABILITIES"][0].tolist())

            yield ask


@contextmanager
def constant_load(url: str, model: str, texts: list[str], *, threads: int = 4):
    with running(Load(url, model, texts, threads)) as load:
        yield load


@contextmanager
def running(load: Load):
    """The load while the context is open."""
    load.start()
    try:
        yield load
    finally:
        load.stop()
