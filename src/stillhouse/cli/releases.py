"""`stillhouse releases` and `stillhouse rollback`: what was served on this machine, and going back to it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from stillhouse.cli.options import AsJson

__all__ = ["releases", "rollback"]


def releases(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Name of a model; without it, all of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what was served on this machine and when, the newest first: what serves now, and what is champion."""
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import print_json, stdout
    from stillhouse.registry import MlflowRegistry
    from stillhouse.serving.journal import read_releases
    from stillhouse.serving.server import server_status, serving_folder
    from stillhouse.state import home, tracking_uri

    require("mlflow", "train", "`stillhouse releases`")
    found = list(reversed(read_releases(serving_folder(home()), model or "")))
    status = server_status(home())
    live = status if status and status.status in ("ready", "restarting") else None
    registry = MlflowRegistry(tracking_uri())
    # A version may have been served several times: the newest entry is the one that is spoken of.
    champions = {name: registry.get_alias(name, "champion") for name in {entry.model for entry in found}}
    rows: list[dict[str, Any]] = []
    served = (live.model, live.version, live.package) if live else None
    for entry in found:
        is_served = (entry.model, entry.version, entry.package) == served
        served = None if is_served else served
        champion = entry.registered and champions.get(entry.model) == entry.version
        if champion:
            del champions[entry.model]
        rows.append({**dataclasses.asdict(entry), "served": is_served, "champion": champion})
    if as_json:
        print_json(rows)
        return
    console = stdout()
    if not rows:
        what = f"{model} was never served here." if model else "Nothing was served here yet."
        console.print(what, markup=False, soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold", show_edge=False)
    for title in ("Served since", "Model", "Version", "By", "Now"):
        table.add_column(title, justify="right" if title == "Version" else "left", no_wrap=True)
    for row in rows:
        notes = [note for note in ("served", "champion") if row[note]]
        by = row["how"] if row["registered"] else f"{row['how']} (a folder)"
        when = row["at"][:19].replace("T", " ")
        table.add_row(when, Text(row["model"]), row["version"], by, Text(", ".join(notes), style="green"))
    console.print(table)


def rollback(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Name of a model; without it, the one that is served."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="VERSION", help="Version to go back to.  [default: the one served before]")
    ] = "",
) -> None:
    """Serve the release before again, with no request lost, and call it champion.

    It is first tried on spare ports, and takes the place of the present one only when it answers as it should.
    Another rollback goes one release further back; what was rolled back from is not gone back to, unless it is named.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import stdout
    from stillhouse.cli.runs import writable_home
    from stillhouse.deploy.config import version_problems
    from stillhouse.errors import InputError
    from stillhouse.state import tracking_uri

    for module in ("mlflow", "tritonclient", "tokenizers", "onnxruntime"):
        require(module, "local", "`stillhouse rollback`")
    from stillhouse.deploy.rollback import roll_back
    from stillhouse.registry import MlflowRegistry

    if problems := version_problems("--to", to):
        raise InputError(problems)
    uri = tracking_uri()
    before, endpoint = roll_back(
        writable_home(), registry=MlflowRegistry(uri), tracking_uri=uri, model=model or "", to=to
    )
    what = f"Serving {endpoint.model} version {endpoint.version} at gRPC {endpoint.grpc_url}"
    instead = f" instead of version {before}" if before and before != endpoint.version else ""
    stdout().print(f"{what}{instead}; it is the champion now.", markup=False, soft_wrap=True)
