"""What was served on this machine, and when: a line of JSON per release, in `releases.jsonl` of the serving folder.

Rolling back goes by it. A rollback is one more entry, after which the releases that it left behind are not gone back
to: with releases 1, 2 and 3, one rollback serves 2 and the next one serves 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from stillhouse.serving.server import ServerConfig

__all__ = ["Release", "read_releases", "record_release", "standing"]

_NAME = "releases.jsonl"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release that came to be served."""

    at: str
    """When it did, ISO 8601 in UTC."""
    model: str
    version: str
    package: str
    """Folder of its package; it may have been cleared out since."""
    how: str
    """`deploy` (by a run), `rollback`, or `serve` (by hand)."""
    registered: bool
    """Whether it is a registered version, and not only a folder."""


def record_release(config: ServerConfig, how: str, *, registered: bool = True) -> None:
    """Append what is served now."""
    entry = Release(
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model=config.model,
        version=config.version,
        package=str(config.package),
        how=how,
        registered=registered,
    )
    config.folder.mkdir(parents=True, exist_ok=True)
    with (config.folder / _NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")


def read_releases(folder: Path, model: str = "") -> list[Release]:
    """What was served in a folder, of one model or of all, the oldest first. Lines that cannot be read are left out."""
    try:
        lines = (folder / _NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = Release(**json.loads(line))
        except (ValueError, TypeError):  # cut off, or of another release of Stillhouse
            continue
        if model in ("", entry.model):
            found.append(entry)
    return found


def standing(releases: Sequence[Release]) -> list[Release]:
    """Of a model's releases those that can be gone back to, the oldest first; the last is the one that is served.

    Only registered versions count, each once.
    """
    stack: list[Release] = []
    for entry in releases:
        if not entry.registered:
            continue
        known = [one.version for one in stack]
        if entry.version in known:
            place = known.index(entry.version)
            # A rollback leaves behind what came after; to deploy or serve again is to put on top.
            stack = stack[:place] if entry.how == "rollback" else [*stack[:place], *stack[place + 1 :]]
        stack.append(entry)
    return stack
