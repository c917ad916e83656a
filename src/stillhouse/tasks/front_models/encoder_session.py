"""ONNX Runtime in a Python process of Triton's.

This file is copied as it stands into every package, beside `model.py`, for front models that run their encoder
themselves; and beside the backend `onnxruntime` of the local server. It imports the standard library, numpy and
onnxruntime only.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports to its maker unless told not to before it is imported
import onnxruntime

__all__ = ["EncoderSession", "open_session", "usable_cores"]


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, or its container's share of time where that is less."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))  # `max` is no number: no limit
    return cores


def open_session(path: Path, *, threads: int, gpu: bool = False) -> Any:
    """A session on an ONNX file, which shares its cores with a server.

    Args:
        path: the file.
        threads: that work on one call; on a GPU, those that feed it.
        gpu: run it on a GPU, as far as it can.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads spin from one operator to the next, which is quickest, but no longer: the server and the front model
    # share the cores, and all that they do between two calls would take half as long again.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    providers = [*(["CUDAExecutionProvider"] if gpu else []), "CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


class EncoderSession:
    """An encoder on a CPU. Calls from several threads take turns, since each has all the cores.

    Args:
        path: ONNX file; inputs `input_ids` and `attention_mask` INT64 [n, s], output `probabilities` FP32 [n, c].
        threads: that work on one call; 0 is one for each usable core.
        max_length: tokens of the longest text: calls of that length and of a short one are made at once, so that the
            first request is no slower than the next.
    """

    def __init__(self, path: Path, *, threads: int, max_length: int) -> None:
        self._session = open_session(path, threads=threads or usable_cores())
        self._turn = threading.Lock()
        for length in {min(16, max_length), max_length}:
            self(np.zeros((1, length), dtype=np.int64), np.ones((1, length), dtype=np.int64))

    def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """(token ids [n, s], attention mask [n, s]) to probabilities [n, c]."""
        with self._turn:
            outputs = self._session.run(["probabilities"], {"input_ids": ids, "attention_mask": mask})
        probabilities: NDArray[np.float32] = outputs[0]
        return probabilities
