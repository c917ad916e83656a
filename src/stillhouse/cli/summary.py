"""What came of a run, for people: the comparison, the choice and why, the model version, the endpoint, the report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stillhouse.artifacts import EvaluationManifest
from stillhouse.cli.view import format_seconds

__all__ = ["REPORT", "fact_table", "print_evaluation", "print_summary", "report_path"]

REPORT = "report.html"

_OUTCOMES = {
    "unchanged": ("Unchanged", "green"),
    "registered": ("Not deployed", ""),
    "challenger": ("Not promoted", "yellow"),
    "deployed": ("Promoted", "green"),
    "kept": ("Kept", "green"),
    "failed": ("Not deployed", "red"),
    "pretrained": ("Pretrained", "green"),
}
"""Title and style of what came of a run; see `stillhouse.registry.OUTCOMES`."""
_WIDE = 100
_NARROW = ("model", "precision", "quality", "retention", "bytes", "p95")
"""Keys of the columns that fit a terminal of 80 characters."""


def report_path(record: dict[str, Any]) -> Path | None:
    """Where the HTML report of a run is; None when it was never written or is gone."""
    folder = record.get("evaluation_dir")
    path = Path(folder) / REPORT if folder else None
    return path if path and path.is_file() else None


def print_summary(console: Console, record: dict[str, Any]) -> None:
    """Print all that `run.json` leads to.

    Raises:
        ManifestError: the evaluation that it names is gone or of another release.
    """
    if record.get("evaluation_dir"):
        # What came of the run says it too, or supersedes it.
        print_evaluation(console, Path(record["evaluation_dir"]), gate=not record.get("outcome"))
    facts = fact_table()
    if model := record.get("model"):
        note = " (unchanged, registered before)" if model.get("reused") else ""
        facts.add_row("Model", Text.assemble((f"{model['name']}", "bold"), f" version {model['version']}", note))
    outcome = str(record.get("outcome") or "")
    if outcome in _OUTCOMES:
        title, style = _OUTCOMES[outcome]
        facts.add_row(title, Text(str(record.get("outcome_reason") or ""), style=style))
    endpoint = record.get("endpoint") or {}
    if url := endpoint.get("url"):
        http = f"  [dim]·[/dim]  HTTP {endpoint['http_url']}" if endpoint.get("http_url") else ""
        facts.add_row("Endpoint", f"gRPC [bold]{url}[/bold]{http}")
    if path := report_path(record):
        facts.add_row("Report", Text(str(path)))
    facts.add_row("Log", Text(str(record["log"])))
    if record.get("seconds") is not None:
        facts.add_row("Took", format_seconds(record["seconds"]))
    console.print(Padding(facts, (0, 0, 0, 2)))
    if url:
        _print_examples(console, endpoint)


def print_evaluation(console: Console, folder: Path, *, gate: bool = True) -> None:
    """Print the comparison table of an evaluation artifact, what was chosen and why, and how the champion compares.

    Args:
        console: where to.
        folder: the artifact.
        gate: print the comparison with the champion.

    Raises:
        ManifestError: the artifact is gone or of another release.
    """
    from stillhouse.evaluation.table import COMPACT, columns, table_rows

    evaluation = EvaluationManifest.load(folder)
    keys = COMPACT if console.width >= _WIDE else _NARROW
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold", show_edge=False)
    for column in columns(evaluation, keys):
        title = column.title[:1].upper() + column.title[1:] if column.key == "quality" else column.title
        title = f"  {title}" if column.key == "model" else title
        table.add_column(title, justify="right" if column.number else "left", no_wrap=True)
    notes = []
    for row in table_rows(evaluation, keys):
        if row.note:
            if row.kind == "refused":
                notes.append(f"{row.cells['model']} {row.cells['precision']} was refused: {row.note}")
            elif row.kind == "unservable":
                notes.append(f"{row.cells['model']} cannot be served: {row.note}")
            else:
                notes.append(f"{row.cells['model']} cannot be compared: {row.note}")
        style = "bold green" if row.chosen else "dim" if row.kind != "candidate" else ""
        first, *others = (row.cells[key] for key in keys)
        table.add_row(Text(f"{'▸' if row.chosen else ' '} {first}"), *(Text(cell) for cell in others), style=style)

    choice = evaluation.choice
    console.print()
    console.print(table)
    for note in notes:
        console.print(Padding(Text(note, style="yellow"), (0, 0, 0, 2)))
    console.print()
    facts = fact_table()
    facts.add_row("Chosen", Text.assemble((f"{choice['name']} {choice['precision'].upper()}", "bold green")))
    facts.add_row("Why", Text(choice["reason"]))
    promotion = choice.get("promotion")
    if gate and promotion:
        title = "Promotable" if promotion["decision"] == "promote" else "Not promoted"
        facts.add_row(title, Text(promotion["reason"]))
    rows = f"{evaluation.test_rows:,} test rows; policy {evaluation.policy}; at least {evaluation.min_retention:.0%}"
    facts.add_row("Measured", Text(f"{rows} of the teacher's quality"))
    console.print(Padding(facts, (0, 0, 0, 2)))


def fact_table() -> Table:
    """An empty table of names and facts, with names of one width wherever it is printed."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, width=12)
    table.add_column(overflow="fold")
    return table


def _print_examples(console: Console, endpoint: dict[str, Any]) -> None:
    """A few answers of the new endpoint, and the command to ask it for more."""
    examples = endpoint.get("examples") or []
    if examples:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold green", no_wrap=True)
        table.add_column(style="cyan", justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for example in examples[:3]:
            probability = example.get("probability")
            shown = f"{probability:.3f}" if isinstance(probability, (int, float)) else ""
            table.add_row(Text(str(example.get("label", ""))), shown, Text(" ".join(str(example["text"]).split())))
        console.print()
        console.print(Padding(Group(Text("It answers:", style="dim"), table), (0, 0, 0, 2)))
    command = ["stillhouse", "predict", "--url", endpoint["url"], "--model", endpoint["model"], "Your own text"]
    console.print()
    console.print(Text("  Ask it:", style="dim"))
    console.print(f"    {shlex.join(command)}", markup=False, soft_wrap=True)
