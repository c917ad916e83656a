"""The background process that keeps the local Triton answering.

    python -m stillhouse.serving.supervisor CONFIG

Triton reports itself and a model ready even when the Python process behind the model was killed, and never starts that
process again. So the only thing that counts here is a real inference over gRPC: the server is ready when the first one
was answered, and is restarted, its whole process group, when two in a row failed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import psutil

from stillhouse.client import predict_texts
from stillhouse.errors import ServingError, StillhouseError
from stillhouse.serving.processes import end_group, remove_shared_memory, shared_memory_prefix
from stillhouse.serving.server import START_MARK, ServerConfig, ServerStatus
from stillhouse.serving.triton import Triton, find_triton

__all__ = ["Supervisor", "main"]

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_LASTING = 60.0  # seconds of answering after which earlier restarts are forgiven
_LARGEST_BACKOFF = 30.0  # seconds
_LARGEST_LOG = 10 * 2**20  # bytes

# Runs in the child before it becomes Triton: ends with the supervisor however that ends (PR_SET_PDEATHSIG is 1), and
# takes signals again, which the supervisor blocks.
_LAUNCH = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Supervisor:
    """Runs one server until it is told to stop, or until restarting does not help.

    Args:
        config: the server.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._triton: Triton = find_triton(config.folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._log = config.folder / "logs" / "server.log"
        self._status = ServerStatus(
            status="starting",
            model=config.model,
            version=config.version,
            package=str(config.package),
            ports=config.ports,
            pid=os.getpid(),
            pid_created=psutil.Process().create_time(),
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            log=str(self._log),
        )

    def run(self) -> int:
        """Serve until a stop signal. Returns 0 then, and 1 after giving up.

        Raises:
            ServingError: another supervisor holds this folder.
        """
        self._config.folder.mkdir(parents=True, exist_ok=True)
        with (self._config.folder / "server.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServingError(f"another supervisor runs the server in {self._config.folder}.") from None
            # Signals are waited for, never handled: a handler could run in the middle of anything. SIGCHLD is among
            # them, so that Triton's end is seen at once.
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, {*_STOP_SIGNALS, signal.SIGCHLD})
            try:
                return self._supervise()
            finally:
                self._end()
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)

    def _supervise(self) -> int:
        self._save(status="starting")
        failures = 0
        while True:
            self._start()
            trouble = self._until_ready()
            if not trouble and not self._stopping:
                begin = time.monotonic()
                self._save(status="ready", message=self._status.message)
                print(f"ready: {self._config.model} {self._config.version} at {self._status.grpc_url}", flush=True)
                trouble = self._until_trouble()
                if time.monotonic() - begin > _LASTING:
                    failures = 0
            elif not self._status.restarts:
                failures = self._config.max_restarts  # what never came up will not by being tried again
            self._end()
            if self._stopping:
                (self._config.folder / "server.json").unlink(missing_ok=True)
                return 0
            failures += 1
            print(f"trouble: {trouble}", flush=True)
            if failures > self._config.max_restarts:
                self._save(status="failed", message=trouble, server_pid=0)
                return 1
            self._save(status="restarting", message=trouble, server_pid=0, restarts=self._status.restarts + 1)
            if self._sleep(min(_LARGEST_BACKOFF, 2.0 ** (failures - 1))):
                (self._config.folder / "server.json").unlink(missing_ok=True)
                return 0

    def _start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.exists() and self._log.stat().st_size > _LARGEST_LOG:
            self._log.replace(self._log.with_suffix(".log.1"))
        command = self._triton.command(
            self._lay_out(), self._config.ports, shared_memory=shared_memory_prefix(self._config.folder)
        )
        with self._log.open("ab") as log:
            log.write(f"{START_MARK} {datetime.now(timezone.utc).isoformat(timespec='seconds')}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                close_fds=True,
                start_new_session=True,
                cwd=self._config.folder,
                env=self._triton.environment,
            )
        self._save(server_pid=self._process.pid, server_pid_created=psutil.Process(self._process.pid).create_time())

    def _lay_out(self) -> Path:
        """The model repository to serve: a twin of the package's, of hard links where the file system has them.

        Triton's Python processes leave byte code beside the models, whatever their environment says, and a package with
        one file more than its manifest names is refused later.
        """
        twin = self._config.folder / "served"
        shutil.rmtree(twin, ignore_errors=True)
        shutil.copytree(self._config.package / "triton", twin, copy_function=_link)
        return twin

    def _until_ready(self) -> str:
        """Wait for the first answer. Returns what went wrong, or nothing."""
        deadline = time.monotonic() + self._config.start_timeout
        answer = ""
        while time.monotonic() < deadline:
            if not (answer := self._probe()) or self._stopping:
                return ""
            if ended := self._ended():
                return ended
            self._sleep(0.25)
        return f"no answer within {self._config.start_timeout:g} s of its start; the last one was: {answer}"

    def _until_trouble(self) -> str:
        """Watch a server that answers. Returns what went wrong, or nothing when told to stop."""
        failed = 0
        while not self._sleep(1.0 if failed else self._config.probe_interval):
            if ended := self._ended():
                return ended
            answer = self._probe()
            failed = failed + 1 if answer else 0
            if failed == 2:
                return self._ended() or answer
        return ""

    def _ended(self) -> str:
        code = self._process.poll() if self._process else None
        return "" if code is None else f"Triton ended with code {code}."

    def _probe(self) -> str:
        """Ask for one real inference. Returns why there was no answer, or nothing."""
        url, text = self._status.grpc_url, self._config.probe_text
        with ThreadPoolExecutor(1) as pool:
            # In a thread, so that a signal to stop is not kept waiting by a server that does not answer.
            future = pool.submit(predict_texts, url, self._config.model, [text], timeout=self._config.probe_timeout)
            while not future.done():
                if self._sleep(0.05) or self._ended():
                    self._end()  # which also ends the call
                    break
            error = future.exception()
        if error is None:
            return ""
        if isinstance(error, StillhouseError):
            return str(error)
        return f"{type(error).__name__}: {error}"

    def _sleep(self, seconds: float) -> bool:
        """Wait, though not on after Triton has ended. Returns whether a stop signal came."""
        found = None if self._stopping else signal.sigtimedwait({*_STOP_SIGNALS, signal.SIGCHLD}, seconds)
        self._stopping = self._stopping or (found is not None and found.si_signo in _STOP_SIGNALS)
        return self._stopping

    def _end(self) -> None:
        if self._process is not None:
            # Triton gives requests in flight 10 s. One that does not answer any more has none worth waiting for.
            end_group(self._process.pid, patience=12.0 if self._stopping else 2.0)
            self._process.wait()
            remove_shared_memory(self._config.folder)

    def _save(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type]
        self._status.save(self._config.folder)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def main(arguments: list[str]) -> int:
    """Detach from the caller, then supervise the server that the one argument, JSON, describes."""
    config = ServerConfig.from_json(arguments[0])
    # Everything that can be told at once is told to the caller, by the exit code and on standard error.
    try:
        find_triton(Path(config.folder))
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if os.fork():
        return 0
    try:
        return Supervisor(config).run()
    except StillhouseError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
