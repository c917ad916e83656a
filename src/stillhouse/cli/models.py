"""`stillhouse models`: what is registered, under which aliases, and what is served here."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from stillhouse.cli.extras import require
from stillhouse.cli.output import print_json, stdout
from stillhouse.state import home, tracking_uri

__all__ = ["list_models"]


def list_models(*, as_json: bool) -> None:
    """Print every registered version, the newest of each model first.

    Args:
        as_json: a JSON list with all that the registry says, and `served` (by the local server).

    Raises:
        RegistryError: the registry cannot be reached.
    """
    require("mlflow", "train", "`stillhouse models`")
    from stillhouse.evaluation.table import format_bytes, metric_title
    from stillhouse.registry import MlflowRegistry
    from stillhouse.serving.server import server_status

    status = server_status(home())
    served = (status.model, status.version) if status and status.status in ("ready", "restarting") else None
    rows: list[dict[str, Any]] = [
        {**row, "served": (row["name"], row["version"]) == served} for row in MlflowRegistry(tracking_uri()).models()
    ]
    if as_json:
        print_json(rows)
        return
    console = stdout()
    if not rows:
        console.print(f"No model is registered in {tracking_uri()}.", markup=False, soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold", show_edge=False)
    for title in ("Model", "Version", "Aliases", "Candidate", "Quality", "p95 ms", "Size", "Registered"):
        numeric = title in ("Version", "p95 ms", "Size")
        table.add_column(title, justify="right" if numeric else "left", no_wrap=title != "Aliases")
    for row in rows:
        notes = [*row["aliases"], *(["served"] if row["served"] else [])]
        quality = "" if row["quality"] is None else f"{row['quality']:.4f} {metric_title(row['metric'])}"
        table.add_row(
            Text(row["name"]),
            row["version"],
            Text(", ".join(notes), style="green"),
            Text(f"{row['candidate']} {row['precision']}"),
            quality,
            "" if row["p95_ms"] is None else f"{row['p95_ms']:.2f}",
            "" if row["bytes"] is None else format_bytes(row["bytes"]),
            row["created"][:16].replace("T", " "),
        )
    console.print(table)
