"""A Kubeflow Pipelines to speak to, and the commands that speak to it."""

from __future__ import annotations

import argparse
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp_stand_in import StandIn, serving

from stillhouse.pipelines.remote import uploads
from stillhouse.pipelines.remote.commands import add_commands, run_command

Command = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="session", autouse=True)
def shallow_stack() -> Iterator[None]:
    """Lets `inspect.stack` leave the sources of the callers alone.

    kfp asks it for a caller's name at each setting of each step, and in a test the stack is deep and the modules, which
    are searched for every frame, are thousands: five seconds for each compilation.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", functools.partial(inspect.stack, 0))
        yield


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A stand-in, named by the environment, and no other secrets or state there."""
    for name in (
        "KFP_TOKEN",
        "KFP_COOKIE",
        "KFP_NAMESPACE",
        "KFP_CA_CERTIFICATE",
        "MLFLOW_TRACKING_URI",
        "KFP_TIME_ZONE",
        "COLUMNS",  # whoever runs tests side by side sets a narrow one
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STILLHOUSE_EVENTS", str(tmp_path / "events.jsonl"))
    with serving() as world:
        monkeypatch.setenv("KFP_ENDPOINT", world.url)
        yield world


@pytest.fixture
def command(kubeflow: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """Runs a command in this process; returns its exit code, and its events or its JSON."""
    compile_ = uploads.compiled_yaml
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(dest="command"))

    def once(*arguments: Any) -> str:
        if (key := repr(arguments)) not in _COMPILED:
            _COMPILED[key] = compile_(*arguments)
        return _COMPILED[key]

    monkeypatch.setattr(uploads, "compiled_yaml", once)

    def run(*arguments: str) -> tuple[int, Any]:
        events = tmp_path / "events.jsonl"
        events.unlink(missing_ok=True)
        capsys.readouterr()
        extra = [] if arguments[0] in ("schedule", "publish") else ["--folder", str(tmp_path), "--interval", "0.01"]
        code = run_command(parser.parse_args([arguments[0], *arguments[1:], *extra]))
        if arguments[0] in ("schedule", "publish"):
            return code, json.loads(capsys.readouterr().out)
        return code, [json.loads(line) for line in events.read_text().splitlines()]

    return run


_COMPILED: dict[str, str] = {}
"""Compiling takes a second, and the same arguments give the same text."""
