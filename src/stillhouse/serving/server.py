"""Starts, stops and looks at the supervised local server, and has it change to another release.

A server lives in a folder, `<home>/serving` for the public one:

    server.json     what is served, where, by which processes, and whether it answers
    server.lock     held by the supervisor as long as it lives
    wanted.json     the release that a running supervisor was last asked to change to
    logs/           server.log (Triton's own lines) and supervisor.log (what was done about it, and when), each with
                    earlier ones as .1, .2, …; supervisor.err (what a supervisor died of)
    backends/       Triton's backend folder
    served/         the model repository that Triton reads: hard links into the package
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from stillhouse.artifacts import PackageManifest
from stillhouse.errors import InputError, Problem, ServingError, StillhouseError
from stillhouse.serving.processes import end_group, is_running, remove_shared_memory
from stillhouse.serving.triton import LOOPBACK, Ports, find_triton
from stillhouse.serving.verify import verify_release
from stillhouse.tasks.front_models.request_log import RequestLog

__all__ = [
    "LOG_MARK",
    "ServerConfig",
    "ServerStatus",
    "is_answering",
    "probe_text",
    "read_status",
    "read_wanted",
    "server_status",
    "serving_folder",
    "start_server",
    "stop_folder",
    "switch_server",
]

LOG_MARK = "===== stillhouse "
"""Begins the line in Triton's log before each start and each change of release."""
_STATE = "server.json"
_WANTED = "wanted.json"
_LOG_LINES = 30


def serving_folder(home: str | os.PathLike[str]) -> Path:
    """Folder of the public server under the state folder `home`."""
    return Path(home).absolute() / "serving"


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """One server to run."""

    folder: Path
    """Where the server lives; one server per folder."""
    package: Path
    """The package to serve, a folder with `triton/`."""
    model: str
    """Name of the public model."""
    version: str
    """Version that its answers carry."""
    ports: Ports = field(default_factory=Ports)
    probe_interval: float = 5.0
    """Seconds between probes of a server that answers."""
    probe_timeout: float = 30.0
    """Seconds that a probe may take. A server under load answers late, and shall not be restarted for it."""
    start_timeout: float = 180.0
    """Seconds from a start to the first answer."""
    max_restarts: int = 5
    """Restarts in a row that do not last a minute, after which the supervisor gives up."""
    niceness: int = 0
    """How far the server stands back for other processes, 0 to 19; one that is only tried need not hold up others."""
    drain_timeout: float = 20.0
    """Seconds that a server which is stopped may take to answer what it accepted."""
    log_bytes: int = 10 * 2**20
    """Bytes of a log after which a new file is begun."""
    log_files: int = 3
    """Earlier files that are kept of each log."""

    def to_json(self) -> str:
        """For the supervisor's command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> ServerConfig:
        """What `to_json` wrote."""
        body = json.loads(text)
        paths = {key: Path(body[key]) for key in ("folder", "package")}
        return cls(**{**body, **paths, "ports": Ports(**body["ports"])})


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """What `server.json` holds."""

    status: str
    """`starting`, `ready`, `restarting`, `failed`, or `dead` when the supervisor is gone without a word."""
    model: str
    version: str
    package: str
    """Folder of the package that is served."""
    ports: Ports
    pid: int
    """The supervisor."""
    pid_ticks: int
    """When that process was made, in the kernel's clock ticks since boot: pids are used again."""
    server_pid: int = 0
    """Triton, which leads a process group of its own; 0 while there is none."""
    server_pid_ticks: int = 0
    started: str = ""
    """When the supervisor was started, ISO 8601 in UTC."""
    restarts: int = 0
    """How often Triton was started again."""
    message: str = ""
    """Why it is not ready, or why it was last restarted."""
    log: str = ""
    """Triton's own log."""
    request: str = ""
    """The last change of release that was asked for and is done with; see `switch_server`."""
    request_error: str = ""
    """Why it was not made; empty where it was."""
    request_lines: tuple[str, ...] = ()
    """What Triton said about that."""

    @property
    def grpc_url(self) -> str:
        """`host:port` of the gRPC endpoint."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    def save(self, folder: Path) -> None:
        """Write `server.json` in one rename."""
        partial = folder / f".{_STATE}.{os.getpid()}"
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / _STATE)

    @classmethod
    def load(cls, folder: Path) -> ServerStatus | None:
        """The state in `folder`; None if there is none that can be read."""
        try:
            body = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            return cls(
                **{**body, "ports": Ports(**body["ports"]), "request_lines": tuple(body.get("request_lines", ()))}
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def log_tail(self) -> list[str]:
        """Triton's lines since its last start or change of release, oldest first; its errors alone where it has any."""
        try:
            lines = Path(self.log).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        begin = max((index for index, line in enumerate(lines) if line.startswith(LOG_MARK)), default=-1)
        # Triton's own lines begin with the letter of their severity. Its tables repeat the errors in full, and the
        # line about CUDA is said on every machine without a GPU.
        lines = [line[:500] for line in lines[begin + 1 :] if line.strip() and line[0] not in "+|"]
        errors = [line for line in lines if line[0] in "EF" or "error" in line.lower()]
        errors = [line for line in errors if "CudaDriverHelper" not in line]
        return (errors or lines)[-_LOG_LINES:]


def server_status(home: str | os.PathLike[str]) -> ServerStatus | None:
    """The public server's state, or None where none was started or it was stopped.

    The supervisor's word is taken for it, at most some seconds old; `is_answering` asks the server itself.
    """
    return read_status(serving_folder(home))


def read_status(folder: Path) -> ServerStatus | None:
    """As `server_status`, for a server in any folder."""
    status = ServerStatus.load(folder)
    if status and status.status != "failed" and not is_running(status.pid, status.pid_ticks):
        return replace(status, status="dead", message="its supervisor is gone.")
    return status


def probe_text() -> str:
    """A text that was not asked before, so that the answer is not one from the response cache."""
    return f"probe {time.time_ns()}"


def is_answering(status: ServerStatus, *, timeout: float = 10.0) -> bool:
    """Whether the server answers a real inference now, as the version that it should be."""
    from stillhouse.client import predict_texts

    try:
        (row,) = predict_texts(
            status.grpc_url, status.model, [probe_text()], timeout=timeout, request_id=RequestLog.PROBE_ID
        )
    except StillhouseError:
        return False
    return bool(row["model_version"] == status.version)


def start_server(config: ServerConfig) -> ServerStatus:
    """Start a supervised server in the background, and return when it answered a real inference.

    Nothing of the caller is inherited: no pipe, no terminal, no process group. So the caller may end, or be killed.

    Raises:
        InputError: a port is taken, another server runs in this folder, this platform cannot run it, or the package's
            files are not those of its manifest.
        ServingError: it did not come up; the error holds Triton's own lines.
    """
    find_triton(config.folder)  # what is missing is told here, and not in a log
    verify_release(config.package, PackageManifest.load(config.package), config.version)
    running = read_status(config.folder)
    if running and running.status not in ("dead", "failed"):
        what = f"{running.model} version {running.version} is served already (pid {running.pid})."
        raise InputError(Problem(str(config.folder), what, "Stop it first: stillhouse serve stop."))
    stop_folder(config.folder)  # what a dead supervisor may have left
    if problems := config.ports.problems() or config.ports.taken():
        raise InputError(problems)
    log = config.folder / "logs" / "supervisor.err"
    log.parent.mkdir(parents=True, exist_ok=True)
    _spawn(config, log)
    # The supervisor keeps its own time limits; these are for one that died at once, or hangs.
    deadline = time.monotonic() + config.start_timeout + 60
    status = None
    while time.monotonic() < deadline:
        status = read_status(config.folder)
        if status and status.status == "ready":
            return status
        if status and status.status in ("failed", "dead"):
            break
        time.sleep(0.1)
    if status is None:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        raise ServingError("the server's supervisor did not come up.", tail)
    tail = status.log_tail()
    stop_folder(config.folder)
    raise ServingError(f"{config.model} version {config.version} did not come up: {status.message}", tail)


def _spawn(config: ServerConfig, log: Path) -> None:
    environment = dict(os.environ)
    if paths := environment.get("PYTHONPATH"):  # the supervisor works in another folder
        absolute = [str(Path(path).absolute()) for path in paths.split(os.pathsep) if path]
        environment["PYTHONPATH"] = os.pathsep.join(absolute)
    log.write_bytes(b"")
    with log.open("ab") as file:
        # This child forks once more and ends, so that the supervisor is nobody's child, and nobody's zombie later.
        result = subprocess.run(
            [sys.executable, "-m", "stillhouse.serving.supervisor", config.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            close_fds=True,
            start_new_session=True,
            cwd=config.folder,
            env=environment,
            check=False,
        )
    if result.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        raise ServingError("the server's supervisor did not come up.", tail)


def switch_server(config: ServerConfig) -> ServerStatus:
    """Have the running server change to another release with no request lost, and return when it answers as that.

    The wanted release is left in the server's folder, and the supervisor is told to look there.

    Args:
        config: the release, in the folder and on the ports of the running server.

    Raises:
        InputError: the package's files are not those of its manifest.
        ServingError: no server runs there that answers, it listens on other ports, or the release did not load: then
            the one before still serves. The error holds Triton's own lines.
    """
    verify_release(config.package, PackageManifest.load(config.package), config.version)
    status = read_status(config.folder)
    if status is None or status.status != "ready" or status.ports != config.ports:
        raise ServingError(f"no server runs in {config.folder} on these ports that could change its release.")
    request = secrets.token_hex(8)
    partial = config.folder / f".{_WANTED}.{os.getpid()}"
    partial.write_text(json.dumps({"request": request, "config": config.to_json()}), encoding="utf-8")
    partial.replace(config.folder / _WANTED)
    what = f"{config.model} version {config.version}"
    with contextlib.suppress(ProcessLookupError):
        os.kill(status.pid, signal.SIGUSR1)
    # The supervisor keeps its own time limits, for each of several models; this is for one that hangs.
    deadline = time.monotonic() + 4 * config.start_timeout
    while time.monotonic() < deadline:
        status = read_status(config.folder)
        if status is None or status.status in ("failed", "dead"):
            message = status.message if status else "it was stopped."
            raise ServingError(f"the server ended while it changed to {what}: {message}")
        if status.request == request and status.request_error:
            raise ServingError(f"{what} did not come up: {status.request_error}", status.request_lines)
        if status.request == request:
            return status
        time.sleep(0.1)
    raise ServingError(f"the server did not change to {what} within {4 * config.start_timeout:g} s.")


def read_wanted(folder: Path) -> tuple[str, ServerConfig] | None:
    """The change of release that a supervisor was asked for: its name, and the server. None where there is none."""
    try:
        body = json.loads((folder / _WANTED).read_text(encoding="utf-8"))
        return str(body["request"]), ServerConfig.from_json(body["config"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def stop_folder(folder: Path) -> ServerStatus | None:
    """Stop the server in a folder and wait until all its processes are gone. Returns what ran, or None."""
    status = read_status(folder)
    if status is None:
        return None
    if is_running(status.pid, status.pid_ticks):
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(status.pid)
            supervisor.terminate()
            try:
                supervisor.wait(timeout=60)  # it lets requests be answered first
            except psutil.TimeoutExpired:
                supervisor.kill()
                supervisor.wait(timeout=10)
    # A supervisor that was killed leaves this to us. Read again: it may have restarted Triton in between.
    last = ServerStatus.load(folder) or status
    if is_running(last.server_pid, last.server_pid_ticks):
        end_group(last.server_pid, patience=15.0)
    remove_shared_memory(folder)
    (folder / _STATE).unlink(missing_ok=True)
    return status
