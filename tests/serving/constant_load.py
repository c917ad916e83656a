"""Constant load on a server, by plain tritonclient without retries, that keeps a record of every request."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException


@dataclass(frozen=True)
class Answer:
    sent: float
    received: float
    text: str
    version: str = ""
    probabilities: tuple[float, ...] = ()
    error: str = ""


class Load:
    """What was asked and answered, in seconds of `time.monotonic`."""

    def __init__(self, url: str, model: str, texts: list[str], threads: int, moves: bool):
        self._url, self._model, self._texts, self._moves = url, model, texts, moves
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
        with grpc.InferenceServerClient(self._url, channel_args=options) as client:
            turn = number
            while not self._stop.is_set():
                text = self._texts[turn % len(self._texts)]
                turn += 1
                tensor = grpc.InferInput("TEXT", [1, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
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
def constant_load(url: str, model: str, texts: list[str], *, threads: int = 4, moves: bool = False):
    """Load while the block runs; with `moves`, a request that meets the end of its connection goes to the next one."""
    load = Load(url, model, texts, threads, moves)
    load.start()
    try:
        yield load
    finally:
        load.stop()
