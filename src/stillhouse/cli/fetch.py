"""`stillhouse fetch`: one pinned package to a folder, as the init container of a pod does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["fetch"]


def fetch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="models:/NAME/VERSION in MLflow, or the folder of a package: s3://…, gs://…, az://…, or a path.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to: empty, or what an earlier attempt left.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="Registered and served name.")],
    version: Annotated[
        str, typer.Option(metavar="N", help="Registered version; every answer of the served model bears it.")
    ],
    manifest_sha256: Annotated[str, typer.Option(metavar="HEX", help="sha256 that its package.json must have.")],
) -> None:
    """Fetch a pinned package, check it, and lay it out for Triton.

    package.json must have the given sha256, and every other file the one that package.json says. FOLDER/triton is the
    model repository afterwards; it is whole, or not there. A repeated command finds what is there, and clears what a
    killed one left.

    MLflow's address comes from MLFLOW_TRACKING_URI. Credentials come from the environment: MLFLOW_TRACKING_…, AWS_…,
    GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_…, or the identity of the machine or pod.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import stderr
    from stillhouse.deploy.fetch import FetchConfig, fetch_pinned

    if source.startswith("models:"):
        require("mlflow", "ops", "`stillhouse fetch models:/…`")
    console = stderr()
    config = FetchConfig(
        source=source, folder=folder.absolute(), model=model, version=version, manifest_sha256=manifest_sha256
    )
    fetch_pinned(config, lambda line: console.print(line, markup=False, soft_wrap=True))
