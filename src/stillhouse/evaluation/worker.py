"""One candidate in a process of its own: `python -m stillhouse.evaluation.worker PACKAGE --threads N`.

PACKAGE is a package, or a model artifact of which none can be made; that one runs in PyTorch, and is only to predict.

The parent writes one JSON request a line to standard input and reads JSON replies from standard output:

    {"do": "load"}                                                        -> {"ok": {"import_mb", "seconds"}}
    {"do": "predict", "texts": path, "rows": n, "batch": b, "output": path}  -> {"done": rows}…, {"ok": {}}
    {"do": "time", "batches": [[text, …], …], "warm": k}                   -> {"ok": {"seconds": [one per batch]}}
    {"do": "memory"}                                                      -> {"ok": {"peak_mb"}}

or `{"error": message}`. It ends when standard input does, so it never outlives its parent.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from stillhouse.artifacts import ModelManifest
from stillhouse.evaluation.processes import serve_requests

__all__ = ["Worker", "peak_memory_mb"]

_STATUS = Path("/proc/self/status")


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB (10^6 bytes).

    Linux hands the parent's own peak down through fork and exec in `ru_maxrss`, which would show every worker of a
    1 GB parent at 1 GB or more; `VmHWM` starts afresh with the new program.
    """
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class Worker:
    """Answers requests about one package, or one checkpoint."""

    def __init__(self, package: Path, threads: int) -> None:
        self.package = package
        self.threads = threads
        self.runtime: Any = None

    def load(self) -> dict[str, float]:
        """Import the libraries that serve it, note what they alone take, then load it."""
        if (self.package / ModelManifest.filename()).is_file():
            return self._load_checkpoint()
        import onnxruntime  # noqa: F401
        import tokenizers  # noqa: F401

        from stillhouse.serving.runtime import PackageRuntime

        import_mb = peak_memory_mb()
        begin = time.perf_counter()
        self.runtime = PackageRuntime(self.package, threads=self.threads)
        return {"import_mb": import_mb, "seconds": time.perf_counter() - begin}

    def _load_checkpoint(self) -> dict[str, float]:
        import torch  # noqa: F401
        import transformers  # noqa: F401

        from stillhouse.evaluation.pytorch import CheckpointRuntime

        import_mb = peak_memory_mb()
        begin = time.perf_counter()
        self.runtime = CheckpointRuntime(self.package, threads=self.threads)
        return {"import_mb": import_mb, "seconds": time.perf_counter() - begin}

    def predict(self, texts: str, rows: int, batch: int, output: str, say: Callable[[dict[str, Any]], None]) -> None:
        """Predict a file of one JSON string a line, in order, and save the probabilities [rows, c] as `.npy`."""
        import numpy as np

        result, done = None, 0
        with open(texts, encoding="utf-8") as file:
            while block := [json.loads(line) for line in islice(file, batch)]:
                probabilities = self.runtime.predict(block).probabilities
                if result is None:
                    shape = (rows, probabilities.shape[1])
                    # Mapped, so that the outputs of a large test split do not count as the model's memory.
                    result = np.lib.format.open_memmap(output, mode="w+", dtype=np.float32, shape=shape)
                result[done : done + len(block)] = probabilities
                done += len(block)
                say({"done": done})
        if result is not None:
            result.flush()

    def time(self, batches: list[list[str]], warm: int) -> dict[str, list[float]]:
        """Seconds that each batch takes, tokenising included, after `warm` calls that are not counted."""
        for batch in batches[:warm]:
            self.runtime.predict(batch)
        seconds = []
        gc.collect()
        gc.disable()
        try:
            for batch in batches:
                begin = time.perf_counter()
                self.runtime.predict(batch)
                seconds.append(time.perf_counter() - begin)
        finally:
            gc.enable()
        return {"seconds": seconds}

    def answer(self, request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Carry out one request."""
        what = request.pop("do")
        if what == "load":
            return self.load()
        if what == "predict":
            self.predict(**request, say=say)
            return {}
        if what == "time":
            return self.time(**request)
        if what == "memory":
            return {"peak_mb": peak_memory_mb()}
        raise ValueError(f"unknown request {what!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one package; driven by stillhouse.evaluation.measure.")
    parser.add_argument("package", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    serve_requests(Worker(arguments.package, arguments.threads).answer)


if __name__ == "__main__":
    main()
