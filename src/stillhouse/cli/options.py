"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stillhouse.client import Tls

__all__ = [
    "AsJson",
    "RunPreset",
    "ServedModel",
    "ServedUrl",
    "TlsAuthority",
    "TlsCertificate",
    "TlsKey",
    "WithTls",
    "Workflow",
    "tls_settings",
]

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, and nothing else there.")]
RunPreset = Annotated[
    str,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME|FILE",
        help="Preset that the parameters start from, or a YAML file of parameters.",
    ),
]
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
WithTls = Annotated[bool, typer.Option("--tls", help="Encrypt, and trust the usual certificate authorities.")]
TlsAuthority = Annotated[
    Path | None,
    typer.Option("--tls-ca", metavar="FILE", help="Encrypt, and trust the authorities in this PEM file."),
]
TlsCertificate = Annotated[
    Path | None,
    typer.Option("--tls-cert", metavar="FILE", help="Own certificate (PEM), where the server asks who calls."),
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Private key of --tls-cert (PEM).")]


def tls_settings(tls: bool, authority: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """What the four options say together; None where none of them is given."""
    from stillhouse.client import Tls

    return Tls(authority, key, certificate) if tls or authority or certificate or key else None
