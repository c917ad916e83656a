"""The images, built, and what several tests need to run things in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

__all__ = ["ROOT", "STAND_INS", "MlflowServer", "call", "engine_flags", "make_images", "show"]

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = ROOT.parent / "shared" / "tools"
"""Commands that start an engine and make stand-ins for the public base images, where no registry can be reached."""


@dataclass(frozen=True)
class MlflowServer:
    """Where an MLflow server listens, and where it keeps its artifacts."""

    port: int
    artifacts: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def call(*command: str | Path, **options: Any) -> str:
    """Run a command; its output, or a failure that shows it."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def show(request: pytest.FixtureRequest, text: str) -> None:
    """Print in spite of pytest's capture: sizes and durations are wanted where the test passes, too."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{text}", flush=True)


def engine_flags() -> str:
    """What `docker build` needs here, once an engine runs and the bases are at hand; skips where there is none."""
    if not (STAND_INS / "base-image").exists():
        if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
            pytest.skip("no Docker engine answers, and there is no tool to start one")
        return ""
    if os.geteuid() != 0:
        pytest.skip("starting a Docker engine needs root")
    texts = "".join((ROOT / "images" / name / "Dockerfile").read_text() for name in ("train", "ops"))
    bases = dict(re.findall(r"^ARG (\w+)_IMAGE=(\S+)$", texts, re.MULTILINE))
    for tool, base in (("base-image", bases["PYTHON"]), ("helm-image", bases["HELM"])):
        with FileLock(Path(tempfile.gettempdir()) / "stillhouse-tests-engine.lock"):  # one process starts the engine
            done = subprocess.run([STAND_INS / tool, base], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            pytest.skip(f"{tool} failed: {done.stderr[-300:]}")
    return "--network=host"


def make_images(flags: str, *names: str) -> str:
    """`make images` of these, with what `engine_flags` said; returns what it prints."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "REGISTRY", "TAG")}
    index = environment.get("PIP_EXTRA_INDEX_URL", "")
    options = [f"DOCKER_BUILD_FLAGS={flags}", f"IMAGES={' '.join(names)}"]
    options += [f"TORCH_INDEX_URL={index}"] if "pytorch.org" in index else []
    return call("make", "-j2", "images", *options, cwd=ROOT, env=environment)
