"""The `stillhouse` command.

    try:
        from stillhouse.cli.main import main
        main()
    except SystemExit as end:
        end.code    # 0; 2 when the input is at fault, every problem listed; 128 + n when signal n stopped a run; else 1

Commands import what they need when they run, so that `--help` and completion answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillhouse import StillhouseError, __version__
from stillhouse.cli.bench import app as bench
from stillhouse.cli.compare import compare
from stillhouse.cli.deploy import deploy, status
from stillhouse.cli.fetch import fetch
from stillhouse.cli.kubeflow import schedule, submit
from stillhouse.cli.options import (
    AsJson,
    RunPreset,
    ServedModel,
    ServedUrl,
    TlsAuthority,
    TlsCertificate,
    TlsKey,
    WithTls,
    tls_settings,
)
from stillhouse.cli.output import print_error
from stillhouse.cli.pretrain import pretrain
from stillhouse.cli.publish import publish
from stillhouse.cli.releases import releases, rollback
from stillhouse.cli.serve import app as serve
from stillhouse.cli.smoke import smoke

__all__ = ["app", "main"]

# Plain help: it stays the same between releases of rich, and docs/cli.md is made from it.
app = typer.Typer(
    name="stillhouse",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=(
        "From labelled text to a small, fast gRPC endpoint: fine-tune, distil, compare, register and serve.\n\n"
        "State is kept in ./.stillhouse; the environment variable STILLHOUSE_HOME names another folder."
    ),
)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Give one parameter another value. May be given many times."),
]
Cluster = Annotated[
    str,
    typer.Option("--cluster", "-c", metavar="NAME|FILE", help="`gpu`, `cpu`, or a file that describes your cluster."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"stillhouse {__version__}")
        raise typer.Exit


@app.callback()
def _stillhouse(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def run(
    preset: RunPreset = "demo",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on this machine.

    Prepares the data, trains a teacher and smaller models, packages and compares them, registers the one that the
    policy picks, and deploys it. Shows the steps as they go, and at the end the comparison, the choice and why, the
    registered model version and the endpoint.

    A repeated command reuses every step whose inputs are unchanged, and continues a training that was cut off from
    its last checkpoint.

    Presets and parameters are listed in docs/parameters.md.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.run import run_pipeline

    require("kfp", "local", "`stillhouse run`")
    raise typer.Exit(run_pipeline(preset, settings or [], as_json=as_json))


app.command()(pretrain)


@app.command("compile")
def compile_(
    workflow: Annotated[
        str,
        typer.Option(
            "--pipeline",
            "--workflow",
            metavar="train-and-deploy|pretrain",
            help="Which pipeline.  [default: train-and-deploy]",
            show_default=False,
        ),
    ] = "",
    cluster: Cluster = "gpu",
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME|FILE",
            help="Preset that the defaults come from, or a YAML file of parameters.  [default: the cluster's]",
            show_default=False,
        ),
    ] = "",
    settings: Settings = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file, not standard output.")
    ] = None,
) -> None:
    """Compile a pipeline for Kubeflow.

    Prints the IR YAML that Kubeflow Pipelines takes. Its parameters are those of `stillhouse run --set`, or of
    `stillhouse pretrain`; presets and settings become their defaults. What a cluster fixes is described in
    docs/operations.md.
    """
    from stillhouse.cli.compile import compile_pipeline
    from stillhouse.cli.extras import require

    require("kfp", "train", "`stillhouse compile`")
    raise typer.Exit(compile_pipeline(cluster, preset, settings or [], output, workflow))


app.command()(submit)
app.add_typer(schedule, name="schedule")
app.command()(publish)


@app.command()
def predict(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts; without any, lines of standard input.")
    ] = None,
    url: ServedUrl = None,
    model: ServedModel = None,
    tls: WithTls = False,
    tls_ca: TlsAuthority = None,
    tls_cert: TlsCertificate = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask a served model about texts, over gRPC."""
    from stillhouse.cli.extras import require
    from stillhouse.cli.predict import predict as ask

    require("tritonclient", "client", "`stillhouse predict`")
    ask(texts or [], url, model, tls=tls_settings(tls, tls_ca, tls_cert, tls_key), as_json=as_json)


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of a model; without it, all of them.")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Which version was in production where, since when and until when.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the registered models, their versions and aliases."""
    from stillhouse.cli.models import list_history, list_models

    (list_history if history else list_models)(name or "", as_json=as_json)


@app.command()
def report(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Name of a run, or a part of it; without it, the last one evaluated."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open report.html in the web browser.")] = False,
    path: Annotated[bool, typer.Option("--path", help="Print the path of report.html and nothing else.")] = False,
) -> None:
    """Show a run's comparison again, and its HTML report."""
    from stillhouse.cli.report import show_report

    show_report(run, open_browser=open_, path_only=path)


app.command()(compare)
app.add_typer(serve, name="serve")
app.command()(deploy)
app.command()(status)
app.command()(releases)
app.command()(rollback)
app.command()(fetch)
app.command()(smoke)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line and exit.

    Errors that Stillhouse raises on purpose go to standard error without a traceback; any other is a bug, and keeps it.
    """
    try:
        app(prog_name="stillhouse")
    except StillhouseError as error:
        print_error(error)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # Whoever read standard output has gone, as `head` does. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
