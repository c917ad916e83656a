"""Debian's packages, for tests that need a real server of another project."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

__all__ = ["can_install", "install"]


def can_install() -> bool:
    """Whether this user may, and there is apt-get."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(package: str) -> None:
    """Install a package if possible; whether it is there afterwards is for the caller to see."""
    # RUNLEVEL keeps the package from starting a server.
    options = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}, "capture_output": True}
    with FileLock(Path(tempfile.gettempdir()) / "stillhouse-tests-apt.lock"):
        subprocess.run(["apt-get", "update", "-qq"], **options)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], **options)
