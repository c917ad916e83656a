"""`stillhouse publish`: what it uploaded, made and changed, for people or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from stillhouse.cli.output import print_json, stdout
from stillhouse.cli.schedule import ask

__all__ = ["publish_file"]


def publish_file(file: Path, options: Sequence[str], *, as_json: bool) -> None:
    """Make pipelines and schedules on Kubeflow as a file says, and print a line for each.

    Args:
        file: lists them.
        options: where Kubeflow Pipelines is, and who publishes.
        as_json: print a JSON document.

    Raises:
        InputError: something given is wrong; nothing was done.
        StillhouseError: Kubeflow Pipelines did not answer, or refused.
    """
    answer = ask("publish", *options, "--", str(file), as_json=as_json)
    if as_json:
        print_json(answer)
        return
    console = stdout()
    for one in answer["pipelines"]:
        news = "uploaded" if one["uploaded"] else "uploaded before"
        console.print(_line(one["uploaded"], f"pipeline {one['pipeline']}, version {one['pipeline_version']}", news))
    for one in answer["schedules"]:
        action = one["action"]
        news = f"{action}: {', '.join(one['changes'])}" if one["changes"] else action
        zone = f" ({one['time_zone']})" if one["time_zone"] else ""
        console.print(
            _line(action != "unchanged", f"schedule {one['name']}, {one['trigger']}{zone}, {one['state']}", news)
        )


def _line(new: bool, what: str, news: str) -> Text:
    return Text.assemble(("✓ ", "green") if new else ("· ", "dim"), what, f": {news}")
