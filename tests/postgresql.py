"""A real PostgreSQL: Debian's, started for a test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from debian import can_install, install

__all__ = ["PostgresqlMissing", "postgresql"]


class PostgresqlMissing(Exception):
    """It is not installed here, and cannot be."""


@contextmanager
def postgresql(
    *, port: int = 0, password: str = "", certificate: Path | None = None, key: Path | None = None
) -> Iterator[Path]:
    """A server with the user `mlflow`, run by an unprivileged user; yields the folder of its socket.

    Args:
        port: of loopback; 0 listens on the socket alone.
        password: of the user; empty asks for none.
        certificate: file of the certificate, where connections over loopback must be encrypted.
        key: file of its key.

    Raises:
        PostgresqlMissing: the message says why.
    """
    initdb = _initdb()
    folder = Path(tempfile.mkdtemp(prefix="stillhouse-postgresql-"))  # a socket's path must be short
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": [], "cwd": folder}
    data, control, secret = folder / "data", initdb.with_name("pg_ctl"), folder / "password"
    options = ["-k", str(folder), "-c", "fsync=off"]
    options += ["-p", str(port), "-h", "localhost"] if port else ["-c", "listen_addresses=''"]
    auth = ["-A", "trust"]
    if password:
        secret.write_text(password)
        secret.chmod(0o644)
        auth = ["-A", "scram-sha-256", "--pwfile", str(secret)]
    try:
        _run(initdb, "-D", data, "-U", "mlflow", *auth, "-E", "UTF8", "--locale=C", "--no-sync", **user)
        if certificate and key:
            for source, name in ((certificate, "server.crt"), (key, "server.key")):
                shutil.copy(source, data / name)
                (data / name).chmod(0o600)
                if user:
                    shutil.chown(data / name, "postgres", "postgres")
            options += ["-c", "ssl=on"]
            (data / "pg_hba.conf").write_text("hostssl all all samehost scram-sha-256\n")
        subprocess.run(
            [control, "-D", data, "-l", folder / "log", "-w", "-o", " ".join(options), "start"], check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **user,
        )  # fmt: skip
        yield folder
    finally:
        subprocess.run([control, "-D", data, "-m", "immediate", "stop"], stdout=subprocess.DEVNULL, **user)
        shutil.rmtree(folder, ignore_errors=True)


def _initdb() -> Path:
    """The command that makes a database cluster, installed first if need be."""
    if not (found := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))):
        if not can_install():
            raise PostgresqlMissing("PostgreSQL is not installed, and installing it needs root and apt-get")
        install("postgresql")
        if not (found := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))):
            raise PostgresqlMissing("PostgreSQL is not installed, and apt-get could not install it")
    return found[-1]


def _run(*command: str | Path, **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
