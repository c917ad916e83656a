"""`stillhouse pretrain`: run the pretraining pipeline, and say where the checkpoint is and what it is for."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import AsJson, RunPreset

if TYPE_CHECKING:
    from rich.console import Console

    from stillhouse.cli.runs import Run
    from stillhouse.cli.state import RunState

__all__ = ["outcome", "pretrain", "print_pretraining"]

_ROLES = {"bert": ("teacher", "student"), "distilbert": ("student",), "albert": ("albert", "student")}
"""Parameters of the main pipeline that take a checkpoint of a family."""
_NOTES = {"student": "  # where the teacher has the same tokenizer"}


def pretrain(
    preset: RunPreset = "tiny",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Give one parameter another value. May be given many times."
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Copy the checkpoint there: a path, s3:// or gs://.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Pretrain a language model on this machine.

    Reads a corpus of documents, trains a tokenizer on it or takes a given one, and pretrains a BERT (masked words and
    next sentences), an ALBERT (masked words and the order of sentences) or a DistilBERT (from a teacher). Its curves go
    to MLflow. At the end stands where the checkpoint is, and how `stillhouse run` takes it.

    A repeated command reuses every step whose inputs are unchanged, and continues a training that was cut off from
    its last checkpoint.

    docs/pretraining.md says more; presets and parameters are listed in docs/parameters.md.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.run import carry_out

    require("kfp", "train", "`stillhouse pretrain`")
    given = [*(settings or []), *([f"output={output}"] if output else [])]
    code = carry_out(
        "pretrain", preset, given, outcome=outcome, summary=print_pretraining, as_json=as_json, workflow="pretrain"
    )
    raise typer.Exit(code)


def outcome(run: Run, state: RunState, *, failed: bool) -> dict[str, Any]:
    """Everything that the run's steps reported, in the form of `run.json` and `--json`."""
    from stillhouse.cli.run import reported

    said = state.results.get("record-pretraining", {})
    names = ("checkpoint", "model_name", "family", "recipe", "parameters", "metrics")
    return {
        **reported(run, state, failed=failed),
        **{name: said.get(name) for name in names},
        "mlflow_run": said.get("run_id"),
        "reused": said.get("reused"),
    }


def print_pretraining(console: Console, record: dict[str, Any]) -> None:
    """Print what came of a pretraining, and the commands that take its checkpoint."""
    from rich.padding import Padding
    from rich.text import Text

    from stillhouse.cli.summary import fact_table
    from stillhouse.cli.view import format_seconds

    facts = fact_table()
    what = f"{record['family']} of {record['parameters']:,} parameters, {record['recipe']}"
    facts.add_row("Pretrained", Text.assemble((str(record["model_name"]), "bold green"), f"  {what}"))
    shown = {name: value for name, value in sorted(record["metrics"].items()) if not name.endswith("loss")}
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items())
    facts.add_row("Held out", Text(figures))
    facts.add_row("Checkpoint", Text(record["checkpoint"], style="bold"))
    note = " (unchanged, recorded before)" if record["reused"] else ""
    facts.add_row("MLflow run", Text(f"{record['mlflow_run']}{note}"))
    facts.add_row("Log", Text(str(record["log"])))
    facts.add_row("Took", format_seconds(record["seconds"]))
    console.print()
    console.print(Padding(facts, (0, 0, 0, 2)))
    commands = _commands(record["family"], record["checkpoint"])
    if commands:
        console.print()
        console.print(Text("  Use it:", style="dim"))
    for command in commands:
        console.print(f"    {command}", markup=False, soft_wrap=True)


def _commands(family: str, checkpoint: str) -> list[str]:
    """How the main pipeline takes the checkpoint; nothing of one in an object store, from which it reads none."""
    if "://" in checkpoint:
        return []
    place = str(Path(checkpoint).absolute())
    return [
        f"{shlex.join(['stillhouse', 'run', '--set', f'{role}={place}'])}{_NOTES.get(role, '')}"
        for role in _ROLES.get(family, ())
    ]
