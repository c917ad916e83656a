"""The local Triton: the server binary that the `nvidia-pytriton` package carries, made to serve packages.

That server has a Python backend only. Its backend folder is assembled here, with a Python-based backend named
`onnxruntime`, so that it loads the model repository that NVIDIA's image loads.

The version it carries, 2.51, has known holes (CVE-2025-23310 and CVE-2025-23311, mended in 25.07): a request may kill
it. So it listens on loopback only, and what administers the server is closed on both protocols. Production means
NVIDIA's image, 25.08 or newer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import secrets
import shutil
import site
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import InputError, Problem, ServingError

__all__ = ["LOOPBACK", "Ports", "Triton", "find_triton", "free_ports", "platform_problems"]

LOOPBACK = "127.0.0.1"
_CACHE_BYTES = 64 * 2**20
_HINT = "Serve with NVIDIA's image, or run on Linux x86-64 with glibc 2.35 and Python 3.10 to 3.12."


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Ports of one server, on loopback."""

    grpc: int = 8001
    http: int = 8000
    """0 leaves HTTP off."""
    metrics: int = 8002
    """0 leaves the Prometheus metrics off."""

    def problems(self) -> list[Problem]:
        """What is wrong with the numbers themselves."""
        found = []
        for where, port in self._named():
            if not (0 <= port <= 65535) or (port == 0 and where == "grpc_port"):
                lowest = 1 if where == "grpc_port" else 0
                found.append(Problem(where, f"{port} is no port.", f"Choose a number from {lowest} to 65535."))
        used: dict[int, str] = {}
        for where, port in self._named():
            if port and port in used:
                found.append(Problem(where, f"{port} is also the {used[port]}.", "Choose different ports."))
            used.setdefault(port, where)
        return found

    def taken(self, except_ports: Iterable[int] = ()) -> list[Problem]:
        """Which of the ports another process listens on; those in `except_ports` are not looked at."""
        spared = set(except_ports)
        return [
            Problem(
                where,
                f"{LOOPBACK}:{port} is taken{_holder(port)}.",
                f"Stop what listens there, or choose another with --set {where}=… or --{where.replace('_', '-')}.",
            )
            for where, port in self._named()
            if port and port not in spared and not _is_free(port)
        ]

    def _named(self) -> tuple[tuple[str, int], ...]:
        return (("grpc_port", self.grpc), ("http_port", self.http), ("metrics_port", self.metrics))


def free_ports() -> Ports:
    """Three ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        grpc, http, metrics = (one.getsockname()[1] for one in sockets)
    return Ports(grpc=grpc, http=http, metrics=metrics)


def _is_free(port: int) -> bool:
    # Triton sets SO_REUSEADDR, so ports in TIME_WAIT are free to it. Binding to all addresses too would ask for more
    # than the server needs.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may see it."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr[1:] == (port,):
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""


def platform_problems() -> list[Problem]:
    """Why the local server cannot run here; empty if it can."""
    found = []
    if sys.platform != "linux" or platform.machine() != "x86_64":
        found.append(f"the local Triton server runs on Linux x86-64, and this is {sys.platform} {platform.machine()}.")
    elif _glibc() < (2, 35):
        found.append(f"the local Triton server needs glibc 2.35 or newer, and this is {platform.libc_ver()[1] or '?'}.")
    if sys.version_info >= (3, 13):
        found.append(f"the local Triton server runs on Python up to 3.12, and this is {platform.python_version()}.")
    problems = [Problem("deploy_target", what, _HINT) for what in found]
    if not found and _pytriton() is None:
        what = "the package nvidia-pytriton, which carries the local Triton server, is not installed."
        problems.append(Problem("deploy_target", what, "Install it: pip install 'stillhouse[local]'."))
    return problems


def _glibc() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(int(part) for part in version.split(".")) if name == "glibc" else (0,)


def _pytriton() -> Path | None:
    """The installed package's folder, found without importing it: its import changes signal handling and logging."""
    spec = importlib.util.find_spec("pytriton")
    return Path(spec.origin).parent if spec and spec.origin else None


@dataclass(frozen=True)
class Triton:
    """A tritonserver that can be started."""

    binary: Path
    backends: Path
    caches: Path
    environment: dict[str, str]

    def command(
        self, repository: Path, ports: Ports, *, models: Iterable[str], shared_memory: str, key: str
    ) -> list[str]:
        """The command line that serves models of a repository on loopback.

        Args:
            repository: a Triton model repository.
            ports: where to listen.
            models: those to load at the start; others are loaded on demand.
            shared_memory: prefix of the names of the shared memory that the server makes, so that what a killed server
                leaves behind can be found.
            key: opens what administers the server, over gRPC.
        """
        # Over HTTP it is closed by a key that nobody is told.
        closed = "shared-memory,model-repository,trace,logging:closed="
        command = [
            str(self.binary),
            f"--model-repository={repository}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
            f"--backend-directory={self.backends}",
            f"--backend-config=python,shm-region-prefix-name={shared_memory}",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=10",
            f"--grpc-address={LOOPBACK}",
            f"--grpc-port={ports.grpc}",
            f"--grpc-restricted-protocol={closed}{key}",
            f"--allow-http={'true' if ports.http else 'false'}",
            f"--allow-metrics={'true' if ports.metrics else 'false'}",
            "--allow-gpu-metrics=false",
            "--metrics-config=summary_latencies=true",
            # For packages that ask for a response cache; others use none of it.
            f"--cache-directory={self.caches}",
            f"--cache-config=local,size={_CACHE_BYTES}",
        ]
        if ports.http:
            command += [
                f"--http-address={LOOPBACK}",
                f"--http-port={ports.http}",
                f"--http-restricted-api={closed}{secrets.token_hex(16)}",
            ]
        if ports.metrics:
            command += [f"--metrics-address={LOOPBACK}", f"--metrics-port={ports.metrics}"]
        return command


def find_triton(folder: Path) -> Triton:
    """Find the installed server and assemble its backend folder under `folder`.

    Raises:
        InputError: the local server cannot run on this platform, or is not installed.
        ServingError: it is installed, and libraries that it needs are missing.
    """
    if problems := platform_problems():
        raise InputError(problems)
    package = _pytriton()
    assert package is not None
    server = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    binary = server / "bin" / "tritonserver"
    for path in (binary, stub):
        if not path.is_file():
            raise ServingError(f"{path} is missing. Install it again: pip install --force-reinstall nvidia-pytriton")
    backends = _assemble_backends(folder / "backends", server / "backends" / "python", stub)
    environment = _environment(package.parent / "nvidia_pytriton.libs")
    if missing := _missing_libraries((binary, stub), environment):
        raise ServingError(
            f"the local Triton server needs libraries that this machine lacks: {', '.join(missing)}. "
            f"libpython comes with the system's package libpython{python}, or with a Python built with --enable-shared."
        )
    return Triton(binary, backends, server / "caches", environment)


def _assemble_backends(folder: Path, native: Path, stub: Path) -> Path:
    """The backend folder: the Python backend with the stub of this Python version, and our `onnxruntime`."""
    python, onnx = folder / "python", folder / "onnxruntime"
    for path in (python, onnx):
        path.mkdir(parents=True, exist_ok=True)
    sources = {python / file.name: file for file in native.iterdir() if file.is_file()}
    sources[python / stub.name] = stub
    sources[onnx / "model.py"] = Path(__file__).parent / "backends" / "onnxruntime" / "model.py"
    parts = Path(__file__).parents[1] / "tasks" / "front_models"
    sources[onnx / "encoder_session.py"] = parts / "encoder_session.py"
    for target, source in sources.items():
        # Copied: the server refuses a backend whose real path lies outside the backend folder. Renamed when whole: a
        # server that starts beside this one never finds half a file.
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy2(source, partial)
        partial.replace(target)
    return folder


def _environment(libraries: Path) -> dict[str, str]:
    """The server's environment: its own libraries, and this Python's packages for its Python processes."""
    environment = dict(os.environ)
    search = [str(libraries)]
    directory, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if directory and name and name.startswith("libpython") and (Path(directory) / name).is_file():
        search.append(directory)
    if inherited := environment.get("LD_LIBRARY_PATH"):
        search.append(inherited)
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(search)
    # The stub embeds Python. From 3.11 on it reads no variable of Python's, and takes its packages from the environment
    # of the first `python3` on the path.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    # Before 3.11 it reads this. Packages only: it shall not find the project's own folders.
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*packages, *site.getsitepackages()]))
    environment.pop("PYTHONHOME", None)
    return environment


def _missing_libraries(files: Iterable[Path], environment: dict[str, str]) -> list[str]:
    missing: set[str] = set()
    for file in files:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            listed = subprocess.run(
                ["ldd", str(file)],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            missing |= {line.split("=>")[0].strip() for line in listed.stdout.splitlines() if "not found" in line}
    return sorted(missing)
