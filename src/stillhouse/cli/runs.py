"""The folders of single runs inside the state folder.

.stillhouse/                      `STILLHOUSE_HOME` names another place
└── runs/
    └── 20260102-030405-1a2b/     a run: sorts by the time it started
        ├── run.json              what was asked for, and what came of it
        ├── events.jsonl          what the steps said (see `stillhouse.progress`)
        └── kfp.log               everything else that they said
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import InputError, Problem
from stillhouse.state import HOME_VARIABLE, home

__all__ = ["Run", "find_run", "list_runs", "writable_home"]


def writable_home() -> Path:
    """The state folder, created if need be and proven writable.

    Raises:
        InputError: it cannot be created, or no file can be written in it.
    """
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits alone do not tell: a file system may be read-only or full, or the user may be root.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"stillhouse")
    except OSError as error:
        raise InputError(
            Problem(
                HOME_VARIABLE,
                f"cannot write in the state folder {folder} ({error.strerror or error}).",
                f"Set {HOME_VARIABLE} to a folder that you may write in.",
            )
        ) from None
    return folder


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path

    @classmethod
    def create(cls, state_folder: Path) -> Run:
        """Make a new folder, named after the present local time and a few random digits."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        folder = state_folder / "runs" / name
        folder.mkdir(parents=True)
        return cls(folder)

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def events(self) -> Path:
        """What the steps report, as JSON lines."""
        return self.folder / "events.jsonl"

    @property
    def log(self) -> Path:
        """Standard output and error of the pipeline's process and of all its steps."""
        return self.folder / "kfp.log"

    def save(self, record: dict[str, Any]) -> None:
        """Write `run.json`, in one rename."""
        partial = self.folder / ".run.json.partial"
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.folder / "run.json")

    def record(self) -> dict[str, Any]:
        """What `run.json` says; empty when it is missing or damaged."""
        try:
            body = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return body if isinstance(body, dict) else {}


def list_runs() -> list[Run]:
    """All runs of the state folder, newest first."""
    folder = home() / "runs"
    if not folder.is_dir():
        return []
    return [Run(path) for path in sorted(folder.iterdir(), reverse=True) if path.is_dir()]


def find_run(name: str | None) -> Run:
    """The run of that name, or of a part of it that no other run shares; without a name, the last one evaluated.

    Raises:
        InputError: no run, or more than one, answers to the name.
    """
    runs = list_runs()
    if not name:
        for run in runs:
            if run.record().get("evaluation_dir"):
                return run
        raise InputError(
            Problem(
                "RUN", f"no run under {home() / 'runs'} got as far as an evaluation.", "Use `stillhouse run` first."
            )
        )
    found = [run for run in runs if run.id == name] or [run for run in runs if name in run.id]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(Problem("RUN", f"{name!r} fits {len(found)} runs: {', '.join(run.id for run in found)}."))
    newest = ", ".join(run.id for run in runs[:5]) or "none yet"
    raise InputError(Problem("RUN", f"there is no run {name!r} under {home() / 'runs'}.", f"The newest are: {newest}."))
