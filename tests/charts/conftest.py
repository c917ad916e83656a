"""Both charts, rendered by the real helm."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

CHARTS = Path(__file__).resolve().parents[2] / "charts"
KUBERNETES = "1.29.0"
"""Of the cluster that charts are rendered for: the one that this helm assumes is older than the charts take."""

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]
Run = Callable[..., subprocess.CompletedProcess[str]]


def _flags(values: Path | Sequence[Path] | None, sets: Sequence[str]) -> list[str]:
    files = [values] if isinstance(values, Path) else list(values or ())
    return [*(f"--values={file}" for file in files), *(f"--set={setting}" for setting in sets)]


@pytest.fixture(scope="session")
def run_helm(helm: Path) -> Run:
    """Runs a command of helm on a chart: `run_helm("lint", "triton", values, "replicas=2", flags=["--strict"])`."""

    def run(
        command: str,
        chart: str,
        values: Path | Sequence[Path] | None = None,
        *sets: str,
        release: str = "reviews",
        flags: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        name = [release] if command == "template" else []
        arguments = [str(helm), command, *name, str(CHARTS / chart), *_flags(values, sets), *flags]
        return subprocess.run(arguments, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def render(run_helm: Run) -> Render:
    """Renders a chart: `render("triton", values, "replicas=2")`, where values are a file, several, or None.

    Returns the list of manifests. Where helm refuses, the test fails with what helm said.
    """

    def template(
        chart: str,
        values: Path | Sequence[Path] | None = None,
        *sets: str,
        namespace: str = "serving",
        flags: Sequence[str] = (),
        **options: Any,
    ) -> list[Manifest]:
        known = [f"--namespace={namespace}", f"--kube-version={KUBERNETES}", *flags]
        done = run_helm("template", chart, values, *sets, flags=known, **options)
        assert done.returncode == 0, done.stderr
        return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]

    return template


@pytest.fixture(scope="session")
def refusal(run_helm: Run) -> Callable[..., str]:
    """Renders a chart that must be refused, and returns what helm says."""

    def refused(chart: str, values: Path | Sequence[Path] | None = None, *sets: str) -> str:
        done = run_helm("template", chart, values, *sets, flags=[f"--kube-version={KUBERNETES}"])
        assert done.returncode != 0, f"helm took {sets}"
        return done.stderr

    return refused
