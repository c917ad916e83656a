"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AsJson", "ServedModel", "ServedUrl", "Workflow"]

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, and nothing else there.")]
ServedUrl = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="gRPC endpoint.  [default: the local server's]", show_default=False),
]
ServedModel = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the served model.  [default: the local server's]", show_default=False),
]
Workflow = Annotated[
    str,
    typer.Option(
        "--workflow",
        metavar="train-and-deploy|pretrain",
        help="Which pipeline.  [default: train-and-deploy]",
        show_default=False,
    ),
]
