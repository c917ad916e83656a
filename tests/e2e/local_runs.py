"""Runs of the whole pipeline through the command line, as a user starts them."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.data.demo import reviews
from stillhouse.serving.triton import Ports

CACHED_STEPS = {"prepare-data", "finetune-teacher", "finetune-albert", "distill-student", "package-teacher",
                "package-student", "package-albert", "fetch-champion", "evaluate"}  # fmt: skip
UNCACHED_STEPS = {"inspect-source", "register", "deploy", "notify"}

_given = itertools.count()


def kept_ports() -> Ports:
    """Ports for a server that starts minutes later: no other tests get them, nor does the system lend them."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 21_000 + 100 * worker + 3 * next(_given)
    return Ports(grpc=first, http=first + 1, metrics=first + 2)


@dataclass
class Run:
    """What a finished `stillhouse run` left behind."""

    returncode: int
    stdout: str
    stderr: str
    folder: Path

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    def steps(self, event: str) -> set[str]:
        """Ids of the steps that reported this event."""
        return {e["step"] for e in self.events() if e["event"] == event and e["step"] != "run"}

    def result(self, step: str) -> dict[str, Any]:
        """Everything that the step reported for the summary."""
        values: dict[str, Any] = {}
        for event in self.events():
            if event["event"] == "result" and event["step"] == step:
                values |= event["values"]
        return values

    def evaluation(self) -> dict[str, Any]:
        return json.loads((Path(self.result("register")["evaluation_dir"]) / "evaluation.json").read_text())


def set_options(settings: dict[str, Any]) -> list[str]:
    """Parameters of a run for the command line."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


class Home:
    """A state folder, and the command that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Wide enough for every table, whatever runs the tests.
        self.environment = {**os.environ, "STILLHOUSE_HOME": str(folder), "NO_COLOR": "1", "COLUMNS": "160"}
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "stillhouse.cli.main", *arguments]

    def stillhouse(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), env=self.environment, capture_output=True, text=True)

    def run(self, preset: str, **settings: Any) -> Run:
        before = set(self.runs())
        done = self.stillhouse("run", "--preset", preset, *set_options(settings))
        made = sorted(set(self.runs()) - before)
        return Run(done.returncode, done.stdout, done.stderr, made[-1] if made else Path())

    def start(self, preset: str, **settings: Any) -> subprocess.Popen[bytes]:
        """A run that is not waited for."""
        command = self.command("run", "--preset", preset, *set_options(settings))
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # fmt: skip

    def runs(self) -> list[Path]:
        return sorted((self.folder / "runs").glob("*"))


def write_reviews(path: Path, rows: int, seed: int = 5) -> Path:
    """A CSV file of labelled reviews, in the columns `review` and `verdict`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "verdict"])
        writer.writerows(reviews(rows, seed))
    return path
