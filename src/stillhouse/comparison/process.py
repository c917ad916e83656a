"""The parent's end of a worker (`stillhouse.comparison.worker`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.comparison.subjects import Subject
from stillhouse.errors import StillhouseError

__all__ = ["WorkerProcess", "worker_processes"]


class WorkerProcess:
    """One model in a process of its own."""

    def __init__(self, subject: Subject, threads: int, folder: Path) -> None:
        self.name = subject.name
        self.folder = folder
        self._log = folder / "stderr.log"
        source = Path(__file__).parents[2]
        environment = os.environ | {
            # The worker must import this very stillhouse, however the parent found it.
            "PYTHONPATH": os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": str(threads),
            # Threads that wait must not spin: the cores are another model's while this one is not asked.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, "-m", "stillhouse.comparison.worker", subject.text, "--threads", str(threads)]
        with self._log.open("wb") as log:
            # In the parent's working directory, since a model may be given by a relative path.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                encoding="utf-8",
            )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; raises as `follow` does."""
        return [*self.follow(do, **fields)][-1]

    def follow(self, do: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Send a request and yield its progress replies, then its answer.

        Raises:
            StillhouseError: the worker reported an error, or died; with the last lines that it wrote.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                reply: dict[str, Any] = json.loads(line)
                if "error" in reply:
                    raise self._failure(f"{self.name} failed to {do}: {reply['error']}")
                if "ok" in reply:
                    yield reply["ok"]
                    return
                yield reply
        except BrokenPipeError:
            pass
        code = self._process.wait()
        ended = f"was killed by signal {-code} (9 often means out of memory)" if code < 0 else f"exited with {code}"
        raise self._failure(f"The process measuring {self.name} {ended} while asked to {do}.")

    def _failure(self, message: str) -> StillhouseError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        return StillhouseError("\n".join([message, *(f"  {line}" for line in lines)]))

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def worker_processes(subjects: Sequence[Subject], threads: int, folder: Path) -> Iterator[list[WorkerProcess]]:
    """A process for each, ended with the block."""
    started: list[WorkerProcess] = []
    try:
        for index, subject in enumerate(subjects):
            own = folder / str(index)
            own.mkdir()
            started.append(WorkerProcess(subject, threads, own))
        yield started
    finally:
        for process in started:
            process.close()
