"""The background process that keeps the local Triton answering.

    python -m stillhouse.serving.supervisor CONFIG

Triton reports itself and a model ready even when the Python process behind the model was killed, and never starts that
process again. So what counts here is a real inference over gRPC: the server is ready when the first one was answered,
and is restarted, its whole process group, when two in a row failed, or at once when one of its processes ended.

    SIGTERM, SIGINT, SIGHUP    answer what was accepted, then end
    SIGUSR1                    change to the release that `wanted.json` names, with no request lost
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import psutil

from stillhouse.artifacts import PackageManifest
from stillhouse.client import predict_texts
from stillhouse.errors import InputError, ServingError, StillhouseError
from stillhouse.interrupts import handlers_kept
from stillhouse.serving.live import LiveRepository, ModelControl, model_processes
from stillhouse.serving.logs import RotatingLog
from stillhouse.serving.processes import end_group, remove_shared_memory, shared_memory_prefix, start_ticks
from stillhouse.serving.repository import encoder_name
from stillhouse.serving.server import LOG_MARK, ServerConfig, ServerStatus, probe_text, read_wanted
from stillhouse.serving.triton import Triton, find_triton
from stillhouse.serving.verify import verify_release
from stillhouse.tasks.front_models.request_log import RequestLog

__all__ = ["Supervisor", "main"]

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_SIGNALS = {*_STOP_SIGNALS, signal.SIGUSR1, signal.SIGCHLD}
_LASTING = 60.0  # seconds of answering after which earlier restarts are forgiven
_LARGEST_BACKOFF = 30.0  # seconds
_WATCH = 0.25  # seconds between looks at the server's processes

# Runs in the child before it becomes Triton: ends with the supervisor however that ends (PR_SET_PDEATHSIG is 1), and
# takes signals again, which the supervisor blocks.
_LAUNCH = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.nice(int(sys.argv[2]))
os.execv(sys.argv[3], sys.argv[3:])
"""


class Supervisor:
    """Runs one server until it is told to stop, or until restarting does not help.

    Args:
        config: the server.
        echo: write the supervisor's log to standard output too.
        on_ready: called when the server has answered for the first time.
    """

    def __init__(self, config: ServerConfig, *, echo: bool = False, on_ready: Callable[[], None] | None = None) -> None:
        self._config = config
        self._echo = echo
        self._on_ready = on_ready
        self._triton: Triton = find_triton(config.folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_reader: threading.Thread | None = None
        self._models: list[psutil.Process] = []  # the Python processes of the server that answers
        self._first_ended = ""  # which of the server's processes was the first to end
        self._key = ""
        self._stopping = False
        self._asked = False  # to change the release
        self._live = LiveRepository(config.folder / "served")
        logs = config.folder / "logs"
        self._log = RotatingLog(logs / "server.log", largest=config.log_bytes, keep=config.log_files)
        self._own_log = RotatingLog(logs / "supervisor.log", largest=config.log_bytes, keep=config.log_files)
        self._status = ServerStatus(
            status="starting",
            model=config.model,
            version=config.version,
            package=str(config.package),
            ports=config.ports,
            pid=os.getpid(),
            pid_ticks=start_ticks(os.getpid()),
            started=_now(),
            log=str(self._log.path),
        )

    def run(self) -> int:
        """Serve until a stop signal. Returns 0 then, and 1 after giving up.

        Raises:
            InputError: the package's files are not those of its manifest.
            ServingError: another supervisor holds this folder.
        """
        self._config.folder.mkdir(parents=True, exist_ok=True)
        with (self._config.folder / "server.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServingError(f"another supervisor runs the server in {self._config.folder}.") from None
            with self._signals_noted():
                try:
                    return self._supervise()
                except InputError as error:
                    self._say(f"refused: {error}")
                    self._save(status="failed", message=str(error), server_pid=0)
                    raise
                finally:
                    self._end()

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Wait for signals rather than be interrupted by them. SIGCHLD is one, so that Triton's end is seen at once.

        They are blocked in this thread. Threads that a library has started may take them all the same, and have them
        noted then.
        """
        with handlers_kept():
            if threading.current_thread() is threading.main_thread():
                for number in _SIGNALS:
                    signal.signal(number, lambda number, _: self._note(number))
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)

    def _note(self, number: int) -> None:
        self._stopping = self._stopping or number in _STOP_SIGNALS
        self._asked = self._asked or number == signal.SIGUSR1

    def _supervise(self) -> int:
        self._save(status="starting")
        failures = 0
        while True:
            try:
                self._start()
                trouble = self._until_ready()
            except OSError as error:  # a full disk, or no memory for another process: it may pass
                trouble = f"it cannot be started: {error}"
            if not trouble and not self._stopping:
                if self._on_ready and not self._status.restarts:
                    self._on_ready()
                begin = time.monotonic()
                self._save(status="ready", message=self._status.message)
                self._say(f"ready: {_name(self._config)} at {self._status.grpc_url}")
                trouble = self._until_trouble()
                if time.monotonic() - begin > _LASTING:
                    failures = 0
            elif not self._status.restarts:
                failures = self._config.max_restarts  # what never came up will not by being tried again
            if not self._stopping:
                self._say(f"trouble: {trouble}")
            self._end()
            if self._stopping:
                return self._stopped()
            failures += 1
            if failures > self._config.max_restarts:
                self._save(status="failed", message=trouble, server_pid=0)
                self._say("given up. The server's last lines:")
                for line in self._status.log_tail():
                    self._say(f"    {line}")
                return 1
            self._save(status="restarting", message=trouble, server_pid=0, restarts=self._status.restarts + 1)
            # Once at once, then ever later.
            if failures > 1 and self._sleep(min(_LARGEST_BACKOFF, 2.0 ** (failures - 2))):
                return self._stopped()

    def _stopped(self) -> int:
        self._say("stopped")
        (self._config.folder / "server.json").unlink(missing_ok=True)
        return 0

    def _start(self) -> None:
        config = self._config
        verify_release(config.package, PackageManifest.load(config.package), config.version)
        self._key, self._first_ended = secrets.token_hex(16), ""
        command = self._triton.command(
            self._live.folder,
            config.ports,
            models=self._live.lay_out(config),
            shared_memory=shared_memory_prefix(config.folder),
            key=self._key,
        )
        self._mark(f"starts tritonserver with {_name(config)}")
        sink, self._log_reader = self._log.follow()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(config.niceness), *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                close_fds=True,
                start_new_session=True,
                cwd=config.folder,
                env=self._triton.environment,
            )
        finally:
            os.close(sink)
        self._save(server_pid=self._process.pid, server_pid_ticks=start_ticks(self._process.pid))
        self._say(f"started: {_name(config)}, pid {self._process.pid}")

    def _until_ready(self) -> str:
        """Wait for the first answer. Returns what went wrong, or nothing."""
        deadline = time.monotonic() + self._config.start_timeout
        answer = ""
        while time.monotonic() < deadline:
            if not (answer := self._probe()) or self._stopping:
                self._models = self._serving()
                return ""
            if ended := self._ended():
                return ended
            self._sleep(_WATCH)
        return f"no answer within {self._config.start_timeout:g} s of its start; the last one was: {answer}"

    def _until_trouble(self) -> str:
        """Watch a server that answers. Returns what went wrong, or nothing when told to stop."""
        failed, due = 0, time.monotonic() + self._config.probe_interval
        while not self._sleep(_WATCH):
            if ended := self._ended():
                return ended
            if self._asked:
                self._asked = False
                self._change()
            elif time.monotonic() >= due:
                answer = self._probe()
                if ended := self._ended():
                    return ended  # which tells more than what the probe met of it
                failed = failed + 1 if answer else 0
                if failed == 2:
                    return answer
                due = time.monotonic() + (1.0 if failed else self._config.probe_interval)
        return ""

    def _change(self) -> None:
        """Serve the release that `wanted.json` names instead of the present one, or go on with that."""
        wanted = read_wanted(self._config.folder)
        if wanted is None or wanted[0] == self._status.request:
            return
        (request, new), old, begin = wanted, self._config, time.monotonic()
        self._say(f"changing from {_name(old)} to {_name(new)}")
        self._mark(f"changes from {_name(old)} to {_name(new)}")
        self._models = []  # some of which end now, as they should
        trouble = self._put_in_place(old, new)
        if not trouble and (trouble := self._probe(new)) and not self._stopping:
            self._put_in_place(new, old)
        if trouble:
            self._models = self._serving()
            self._say(f"{_name(old)} stays: {trouble}")
            self._save(request=request, request_error=trouble, request_lines=tuple(self._status.log_tail()))
            return
        self._config = new
        self._models = self._serving()
        self._say(f"ready: {_name(new)}, after {time.monotonic() - begin:.1f} s")
        release = {"model": new.model, "version": new.version, "package": str(new.package), "message": ""}
        self._save(**release, request=request, request_error="", request_lines=())

    def _put_in_place(self, old: ServerConfig, new: ServerConfig) -> str:
        def switch() -> None:
            verify_release(new.package, PackageManifest.load(new.package), new.version)
            self._live.switch(old, new, self._control(), self._processes)

        return self._ask(switch)

    def _control(self) -> ModelControl:
        return ModelControl(self._status.grpc_url, self._key, timeout=self._config.start_timeout)

    def _processes(self, models: Path) -> list[psutil.Process]:
        return model_processes(self._process.pid, models) if self._process else []

    def _serving(self) -> list[psutil.Process]:
        """The processes without which the present release cannot answer; one that it replaced may take its time."""
        names = (self._config.model, encoder_name(self._config.model))
        return [p for name in names for p in self._processes(self._live.folder / name / self._config.version)]

    def _ended(self) -> str:
        """Which of the server's processes ended first, by itself; empty while all are there."""
        if not self._first_ended:
            code = self._process.poll() if self._process else None
            gone = (p for p in self._models if not p.is_running() or p.status() == psutil.STATUS_ZOMBIE)
            if code is not None:
                self._first_ended = f"Triton ended with code {code}."
            elif process := next(gone, None):
                self._first_ended = f"Triton's Python process {process.pid} ended."
        return self._first_ended

    def _probe(self, config: ServerConfig | None = None) -> str:
        """Ask for one real inference. Returns why there was no answer, or nothing."""
        config = config or self._config

        def answer() -> None:
            url = self._status.grpc_url
            (row,) = predict_texts(
                url, config.model, [probe_text()], timeout=config.probe_timeout, request_id=RequestLog.PROBE_ID
            )
            if row["model_version"] != config.version:
                raise ServingError(f"version {row['model_version']} answers.")

        return self._ask(answer)

    def _ask(self, call: Callable[[], None]) -> str:
        """Make a call to the server. Returns why it failed, or nothing."""
        with ThreadPoolExecutor(1) as pool:
            # In a thread, so that a signal to stop is not kept waiting by a server that does not answer.
            future, ended = pool.submit(call), ""
            while not future.done():
                if self._sleep(0.05) or (ended := self._ended()):
                    self._end()  # which also ends the call
                    break
            error = future.exception()
        if error is None or ended:
            return ended
        if isinstance(error, StillhouseError):
            return str(error)
        return f"{type(error).__name__}: {error}"

    def _sleep(self, seconds: float) -> bool:
        """Wait, though not on after Triton has ended. Returns whether a stop signal came."""
        found = None if self._stopping else signal.sigtimedwait(_SIGNALS, seconds)
        if found is not None:
            self._note(found.si_signo)
        return self._stopping

    def _end(self) -> None:
        if self._process is None:
            return
        self._models = []
        if self._stopping and self._process.poll() is None:
            self._say("stopping: answering what was accepted")
            self._drain()
        # A server that does not answer any more has no requests in flight that are worth waiting for.
        end_group(self._process.pid, patience=12.0 if self._stopping else 0.0)
        self._process.wait()
        if self._log_reader is not None:
            self._log_reader.join(timeout=5.0)
        remove_shared_memory(self._config.folder)

    def _drain(self) -> None:
        """Have everything answered that was accepted.

        Told to end under load, Triton 2.51 refuses its front models the encoder at once, drops what they had taken, and
        often crashes over it. A model that is unloaded takes nothing more, and is gone when it has answered everything.
        """
        leaving = self._processes(self._live.folder / self._config.model)
        with ThreadPoolExecutor(1) as pool:
            control = ModelControl(self._status.grpc_url, self._key, timeout=5.0)
            error = pool.submit(control.unload, self._config.model).exception()
        if error is None:
            psutil.wait_procs(leaving, timeout=self._config.drain_timeout)

    def _mark(self, what: str) -> None:
        self._log.write(f"{LOG_MARK}{what} {_now()}\n".encode())

    def _say(self, what: str) -> None:
        line = f"{_now()} {what}"
        self._own_log.write(f"{line}\n".encode())
        if self._echo:
            print(line, flush=True)

    def _save(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type]
        try:
            self._status.save(self._config.folder)
        except OSError as error:  # a full disk is no reason to end what serves
            self._say(f"server.json cannot be written: {error}")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _name(config: ServerConfig) -> str:
    return f"{config.model} version {config.version}"


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
