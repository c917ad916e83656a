"""`stillhouse serve`: the local Triton, started, stopped and looked at by hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from stillhouse.cli.options import AsJson
from stillhouse.errors import InputError, Problem

if TYPE_CHECKING:
    from stillhouse.serving.server import ServerConfig

__all__ = ["app", "newest_champion"]


class _StartByDefault(TyperGroup):
    """`stillhouse serve` is `stillhouse serve start`, with its arguments and options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["start", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_StartByDefault,
    rich_markup_mode=None,
    help=(
        "Serve a model on this machine with NVIDIA Triton, on loopback, in the background.\n\n"
        "`stillhouse serve MODEL_URI` is short for `stillhouse serve start MODEL_URI`. The server has known holes "
        "and is for this machine alone; production means NVIDIA's image."
    ),
)

_STOPPED = "no server runs."
_LOCK_SECONDS = 60.0


@app.command()
def start(
    model_uri: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL_URI",
            help="models:/NAME@ALIAS, models:/NAME/VERSION, or a package folder; without it, the newest champion.",
        ),
    ] = None,
    grpc_port: Annotated[int, typer.Option(help="gRPC port.")] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 leaves HTTP off.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Port of the Prometheus metrics; 0 leaves them off.")] = 8002,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and stop the server on Ctrl-C.")] = False,
) -> None:
    """Serve a registered model or a package folder, in place of what is served now.

    Returns when the model has answered. Where the ports stay the same, no request is lost, except with --foreground,
    which first stops what is served. The alias `champion` stays where it is: only the pipeline and `stillhouse
    rollback` move it.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import stderr, stdout
    from stillhouse.cli.runs import writable_home

    require("tritonclient", "local", "`stillhouse serve`")
    require("tokenizers", "local", "`stillhouse serve`")
    from stillhouse.deploy.local import serve_instead, serving_lock
    from stillhouse.serving.journal import record_release
    from stillhouse.serving.server import serving_folder, stop_folder
    from stillhouse.serving.supervisor import Supervisor
    from stillhouse.serving.triton import Ports, platform_problems

    if problems := platform_problems():
        raise InputError(problems)
    folder = serving_folder(writable_home())
    ports = Ports(grpc=grpc_port, http=http_port, metrics=metrics_port)
    registered = model_uri is None or model_uri.startswith("models:")
    with ExitStack() as changing:
        # Held until it serves: a deployment under way would clear out the package that was fetched.
        changing.enter_context(serving_lock(folder, wait_s=_LOCK_SECONDS))
        config = _server_config(model_uri, folder, ports)
        what = f"{config.model} version {config.version} at gRPC 127.0.0.1:{ports.grpc}"
        if not foreground:
            serve_instead(config)
            record_release(config, "serve", registered=registered)
            stdout().print(f"Serving {what}. Stop it with `stillhouse serve stop`.", markup=False, soft_wrap=True)
            return
        if stopped := stop_folder(folder):
            stderr().print(f"Stopped {stopped.model} version {stopped.version}.")
        if taken := ports.taken():
            raise InputError(taken)
        stderr().print(f"Starting {what}. Ctrl-C stops it.", markup=False, soft_wrap=True)

        def serving() -> None:
            record_release(config, "serve", registered=registered)
            changing.close()

        raise typer.Exit(Supervisor(config, echo=True, on_ready=serving).run())


@app.command()
def stop() -> None:
    """Stop the local server, and wait until all its processes are gone."""
    from stillhouse.cli.output import stdout
    from stillhouse.deploy.local import stop_serving
    from stillhouse.serving.server import serving_folder
    from stillhouse.state import home

    stopped = stop_serving(serving_folder(home()))
    stdout().print(f"Stopped {stopped.model} version {stopped.version}." if stopped else _STOPPED, markup=False)


@app.command()
def status(
    as_json: AsJson = False,
) -> None:
    """Show what is served and whether it answers, now. Exits with 1 unless it does."""
    from stillhouse.cli.output import print_json, stdout
    from stillhouse.serving.server import is_answering, server_status
    from stillhouse.state import home

    found = server_status(home())
    answers = found is not None and found.status in ("ready", "restarting") and is_answering(found)
    if as_json:
        body = dataclasses.asdict(found) if found else {"status": "stopped"}
        print_json({**body, "answers": answers})
    elif found is None:
        stdout().print(_STOPPED)
    else:
        console = stdout()
        lines = {
            "model": f"{found.model} version {found.version}",
            "status": f"{found.status}{', answers' if answers else ', does not answer'}",
            "message": found.message,
            "gRPC": found.grpc_url,
            "HTTP": f"http://127.0.0.1:{found.ports.http}" if found.ports.http else "off",
            "metrics": f"http://127.0.0.1:{found.ports.metrics}/metrics" if found.ports.metrics else "off",
            "started": f"{found.started}, restarted {found.restarts} times",
            "pid": str(found.pid),
            "log": found.log,
        }
        for name, value in lines.items():
            if value:
                console.print(f"{name:<8} {value}", markup=False, soft_wrap=True)
        if found.status == "failed":
            for line in found.log_tail():
                console.print(f"  {line}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if answers else 1)


def _server_config(model_uri: str | None, folder: Path, ports: Any) -> ServerConfig:
    """The server for a registered model or a package folder, with the package in place.

    Raises:
        InputError: there is no such model or package, or a port cannot be used.
    """
    from stillhouse.artifacts import PackageManifest
    from stillhouse.deploy.shelf import fetch_release
    from stillhouse.serving.repository import model_version
    from stillhouse.serving.server import ServerConfig, read_status
    from stillhouse.serving.verify import verify_release

    running = read_status(folder)
    live = running.ports if running and running.status not in ("dead", "failed") else None
    ours = (live.grpc, live.http, live.metrics) if live else ()
    if problems := ports.problems() or ports.taken(except_ports=ours):
        raise InputError(problems)
    if model_uri is not None and not model_uri.startswith("models:"):
        path = Path(model_uri).expanduser().absolute()
        if not path.is_dir():
            what = f"{model_uri!r} is neither a registered model nor a folder."
            raise InputError(Problem("MODEL_URI", what, "Give models:/NAME@champion, models:/NAME/3, or a package."))
        manifest = PackageManifest.load(path)
        version = model_version(path / "triton", manifest.served_name)
        verify_release(path, manifest, version)
        return ServerConfig(folder=folder, package=path, model=manifest.served_name, version=version, ports=ports)
    if model_uri is not None and not re.fullmatch(r"models:/[^/@]+(@[^/@]+|/[0-9]+)", model_uri):
        remedy = "Give models:/NAME@champion or models:/NAME/3."
        raise InputError(Problem("MODEL_URI", f"{model_uri!r} names no version of a model.", remedy))
    from stillhouse.registry import MlflowRegistry
    from stillhouse.state import tracking_uri

    registry = MlflowRegistry(tracking_uri())
    name, version = registry.resolve(model_uri) if model_uri else newest_champion(registry.models())
    package = fetch_release(registry, name, version, folder / "repository")
    return ServerConfig(folder=folder, package=package, model=name, version=version, ports=ports)


def newest_champion(models: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Name and version of the champion that was registered last.

    Args:
        models: what the registry lists, with `name`, `version`, `aliases` and `created`.

    Raises:
        InputError: no model has a champion.
    """
    champions = [row for row in models if "champion" in row["aliases"]]
    if not champions:
        what = "no registered model is called champion."
        remedy = "Run the pipeline first (stillhouse run), or name a version: models:/NAME/3."
        raise InputError(Problem("MODEL_URI", what, remedy))
    newest = max(champions, key=lambda row: str(row["created"]))
    return str(newest["name"]), str(newest["version"])
