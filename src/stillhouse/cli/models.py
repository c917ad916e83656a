"""`stillhouse models`: what is registered, under which aliases, what is served here, and what was in production."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from stillhouse.cli.extras import require
from stillhouse.cli.output import print_json, stderr, stdout
from stillhouse.errors import InputError, Problem
from stillhouse.state import home, tracking_uri

__all__ = ["list_history", "list_models"]

_NUMERIC = ("Version", "p95 ms", "Size")
_DISPENSABLE = ("Size", "p95 ms", "Registered", "Candidate", "Quality")
"""Columns that go where the terminal is too narrow, the first first."""


def list_models(name: str = "", *, as_json: bool) -> None:
    """Print every registered version, the newest of each model first.

    Args:
        name: of one model; empty for all.
        as_json: a JSON list with all that the registry says, and `served` (by the local server).

    Raises:
        InputError: there is no such model.
        RegistryError: the registry cannot be reached.
    """
    require("mlflow", "train", "`stillhouse models`")
    from stillhouse.evaluation.table import format_bytes, metric_title
    from stillhouse.registry import MlflowRegistry
    from stillhouse.serving.server import server_status

    status = server_status(home())
    served = (status.model, status.version) if status and status.status in ("ready", "restarting") else None
    found = _of(name, MlflowRegistry(tracking_uri()).models())
    rows: list[dict[str, Any]] = [{**row, "served": (row["name"], row["version"]) == served} for row in found]
    if as_json:
        print_json(rows)
        return
    console = stdout()
    if not rows:
        console.print(f"No model is registered in {tracking_uri()}.", markup=False, soft_wrap=True)
        return
    cells = [
        {
            "Model": Text(row["name"]),
            "Version": Text(row["version"]),
            "Aliases": Text(", ".join([*row["aliases"], *(["served"] if row["served"] else [])]), style="green"),
            "Candidate": Text(f"{row['candidate']} {row['precision']}"),
            "Quality": Text("" if row["quality"] is None else f"{row['quality']:.4f} {metric_title(row['metric'])}"),
            "p95 ms": Text("" if row["p95_ms"] is None else f"{row['p95_ms']:.2f}"),
            "Size": Text("" if row["bytes"] is None else format_bytes(row["bytes"])),
            "Registered": Text(row["created"][:16].replace("T", " ")),
        }
        for row in rows
    ]
    _print_fitting(console, cells)


def list_history(name: str = "", *, as_json: bool) -> None:
    """Print when each version was in production and where, the newest period first.

    Args:
        name: of one model; empty for all.
        as_json: a JSON list of `model`, `version`, `where`, `since` and `until`, which is null for what still is.

    Raises:
        InputError: there is no such model.
        RegistryError: the registry cannot be reached.
    """
    require("mlflow", "train", "`stillhouse models`")
    from stillhouse.registry import MlflowRegistry

    registry = MlflowRegistry(tracking_uri())
    names = dict.fromkeys(row["name"] for row in _of(name, registry.models()))
    rows = [{"model": one, **asdict(period)} for one in names for period in registry.service_history(one)]
    rows.sort(key=lambda row: str(row["since"]), reverse=True)
    if as_json:
        print_json(rows)
        return
    if not rows:
        stdout().print(f"Nothing of {name or 'what is registered'} was in production yet.", markup=False)
        return
    cells = [
        {
            "Since (UTC)": Text(row["since"][:16].replace("T", " ")),
            "Until (UTC)": Text(
                (row["until"] or "")[:16].replace("T", " ") or "now", style="" if row["until"] else "green"
            ),
            "Model": Text(row["model"]),
            "Version": Text(row["version"]),
            "Where": Text(row["where"]),
        }
        for row in rows
    ]
    _print_fitting(stdout(), cells)


def _of(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a model, or of all."""
    found = [row for row in rows if name in ("", row["name"])]
    if name and not found:
        known = sorted({row["name"] for row in rows})
        remedy = f"The registry has: {', '.join(known)}." if known else "Nothing is registered yet."
        raise InputError(Problem("NAME", f"no model {name!r} is registered.", remedy))
    return found


def _print_fitting(console: Console, rows: Sequence[dict[str, Text]]) -> None:
    """Print a table; where it does not fit, without some of its columns rather than with cells cut off."""
    titles = list(rows[0])
    left_out = []
    table = _table(titles, rows)
    endless = console.options.update(max_width=10_000)
    for title in _DISPENSABLE:
        if Measurement.get(console, endless, table).maximum <= console.width:
            break
        if title in titles:
            titles.remove(title)
            left_out.append(title)
            table = _table(titles, rows)
    console.print(table)
    if left_out:
        stderr().print(f"A wider terminal, or --json, shows more: {', '.join(reversed(left_out))}.", style="dim")


def _table(titles: Sequence[str], rows: Sequence[dict[str, Text]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold", show_edge=False)
    for title in titles:
        # What is too long even alone is folded: a name or an alias that is cut off is of no use.
        table.add_column(title, justify="right" if title in _NUMERIC else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[title] for title in titles))
    return table
