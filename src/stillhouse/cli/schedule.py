"""`stillhouse schedule`: what Kubeflow answers, for people or as JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stillhouse.cli.extras import require
from stillhouse.cli.launch import pipelines_command
from stillhouse.cli.output import print_json, stderr, stdout
from stillhouse.cli.summary import fact_table
from stillhouse.errors import InputError, Problem, StillhouseError

__all__ = ["ask", "change_schedule", "list_schedules"]

_DONE = {"create": "Made", "pause": "Paused", "resume": "Resumed", "delete": "Deleted"}


def list_schedules(options: Sequence[str], *, as_json: bool) -> None:
    """Print all schedules, one line each.

    Args:
        options: where Kubeflow Pipelines is.
        as_json: print them as a JSON list.

    Raises:
        StillhouseError: Kubeflow Pipelines did not answer, or refused.
    """
    found = ask("schedule", "list", *options, as_json=as_json)
    if as_json:
        print_json(found)
        return
    if not found:
        stderr().print("There are no schedules. Make one with: stillhouse schedule create", soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold", show_edge=False)
    for title in ("Name", "When", "Time zone", "State", "Next", "Last", "Model"):
        table.add_column(title, overflow="fold", no_wrap=title in ("Name", "State"))
    for one in found:
        style = "green" if one["state"] == "active" else "dim"
        cells = (_when(one, "next"), _last(one), one["model_name"])
        state = Text(one["state"], style=style)
        table.add_row(one["name"], one["trigger"], one["time_zone"] or "–", state, *cells)
    stdout().print(table)


def change_schedule(action: str, name: str, options: Sequence[str], *, as_json: bool) -> None:
    """Create, show, pause, resume or delete a schedule, and say what it is now.

    Args:
        action: one of these.
        name: of the schedule, or its id.
        options: where Kubeflow Pipelines is, and all that `create` is told.
        as_json: print a JSON document.

    Raises:
        InputError: something given is wrong; nothing was done.
        StillhouseError: Kubeflow Pipelines did not answer, or refused.
    """
    answer = ask("schedule", action, *options, "--", name, as_json=as_json)
    if as_json:
        print_json(answer)
        return
    console = stdout()
    if action in _DONE:
        title = f"{_DONE[action]} the schedule {answer.get('name') or answer.get('deleted')}"
        console.print(Text.assemble(("✓ ", "green"), (title, "bold")))
    if action == "delete":
        return
    facts = fact_table()
    zone = f" ({answer['time_zone']})" if answer["time_zone"] else ""
    facts.add_row("When", f"{answer['trigger']}{zone}")
    if answer["cron"]:
        facts.add_row("Cron", Text(f"{answer['cron']}, as the cluster reads it"))
    facts.add_row("State", answer["state"])
    facts.add_row("Next", _when(answer, "next"))
    if action == "show":
        facts.add_row("Last", _last(answer))
    for title, key in (("From", "start"), ("Until", "end")):
        if answer[key]:
            facts.add_row(title, _when(answer, key))
    limit = f"{answer['max_concurrency']} at once; missed times {'all' if answer['catch_up'] else 'not'} made up for"
    facts.add_row("Runs", limit)
    facts.add_row("Model", answer["model_name"])
    version = answer.get("pipeline_version")
    news = f" (now {version}{', uploaded' if answer.get('uploaded') else ''})" if version else ""
    facts.add_row("Pipeline", f"{answer['pipeline']}, the latest version{news}")
    if answer.get("replaced"):
        facts.add_row("Replaced", ", ".join(answer["replaced"]))
    facts.add_row("Link", Text(answer["link"]))
    if action == "show":
        for key, value in sorted(answer["parameters"].items()):
            facts.add_row("Parameter", Text(f"{key}={value if isinstance(value, str) else json.dumps(value)}"))
    console.print(Padding(facts, (0, 0, 0, 2)))


def ask(command: str, *options: str, as_json: bool) -> Any:
    """The answer of one of the pipelines' own commands, which know Kubeflow; JSON also of a failure, if wanted.

    Raises:
        InputError, StillhouseError: as that command says.
    """
    try:
        return _answer(command, *options)
    except StillhouseError as error:
        if as_json:
            problems = [vars(problem) for problem in error.problems] if isinstance(error, InputError) else []
            failure = {"exit_code": error.exit_code, "message": str(error), "problems": problems}
            print_json({"status": "failed", **failure})
        raise


def _answer(command: str, *options: str) -> Any:
    require("kfp", "train", f"`stillhouse {command}`")
    process = subprocess.run(
        pipelines_command(command, *options), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    try:
        body = json.loads(process.stdout)
    except ValueError:
        lines = process.stderr.decode(errors="replace").strip()
        raise StillhouseError(f"the command failed (exit status {process.returncode}):\n{lines}") from None
    if "error" not in body:
        return body["result"]
    error = body["error"]
    if error["problems"]:
        raise InputError(Problem(**problem) for problem in error["problems"])
    raise StillhouseError(error["message"])


def _when(one: dict[str, Any], key: str) -> str:
    """A moment in the schedule's own time zone, as people write it."""
    if not one[key]:
        return "–"
    moment = datetime.fromisoformat(one[key])
    with suppress(ZoneInfoNotFoundError, ValueError):
        moment = moment.astimezone(ZoneInfo(one["time_zone"] or "UTC"))
    return f"{moment:%Y-%m-%d %H:%M %Z}"


def _last(one: dict[str, Any]) -> str:
    return ", ".join(filter(None, (_when(one, "last"), one["last_state"])))
