"""`stillhouse run`: start a pipeline, show it, and say what came of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from stillhouse.artifacts import EvaluationManifest
from stillhouse.cli.launch import Interrupted, log_excerpt, pipelines_command, watch
from stillhouse.cli.output import print_json, print_problems, stderr, stdout
from stillhouse.cli.runs import Run, writable_home
from stillhouse.cli.state import RunState
from stillhouse.cli.summary import REPORT, print_summary
from stillhouse.cli.view import view_for
from stillhouse.redaction import redacted

__all__ = ["carry_out", "exit_code_of", "outcome", "reported", "run_pipeline"]

_CONTINUE = "  Finished steps are kept. Repeat the command to continue from the last checkpoint:"
_GO_ON = "  Finished steps are kept: once the cause is mended, the same command goes on after them."
_DETAILS = ("details",)


def run_pipeline(preset: str, settings: Sequence[str], *, as_json: bool) -> int:
    """Run the main pipeline on this machine and report on it; the rest as for `carry_out`."""
    return carry_out("run", preset, settings, outcome=outcome, summary=print_summary, as_json=as_json)


def carry_out(
    verb: str,
    preset: str,
    settings: Sequence[str],
    *,
    outcome: Callable[..., dict[str, Any]],
    summary: Callable[[Console, dict[str, Any]], None],
    as_json: bool,
    workflow: str = "",
) -> int:
    """Run a pipeline on this machine and report on it.

    Args:
        verb: the command that does it.
        preset: name of the preset that the parameters start from.
        settings: `key=value` for each parameter that differs from it.
        outcome: what the run's steps reported, of `run`, `state` and whether it `failed`.
        summary: prints it for people.
        as_json: one JSON document on standard output instead of the summary.
        workflow: which pipeline; empty is the main one.

    Returns:
        The exit code: 0; 2 when the input is at fault; 128 plus the signal's number when stopped; else 1.

    Raises:
        InputError: the state folder cannot be written.
    """
    run = Run.create(writable_home())
    options = [part for setting in settings for part in ("--set", setting)]
    which = ["--workflow", workflow] if workflow else []
    command = pipelines_command("run", *which, "--preset", preset, *options, "--run-dir", str(run.folder))
    state = RunState()
    record: dict[str, Any] = {
        "run": run.id,
        "status": "running",
        "preset": preset,
        "settings": redacted(settings),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    run.save(record)

    began = time.monotonic()
    console = stderr()
    heading = f"[bold]stillhouse {verb}[/bold]  [dim]preset[/dim] {escape(preset)}  [dim]run[/dim] {run.id}"
    interruption: Interrupted | None = None
    with view_for(console, state, heading) as view:
        try:
            status = watch(command, run, state, view.update)
        except Interrupted as error:
            interruption, status = error, error.exit_code
        view.update(state.close(interrupted=interruption is not None))

    exit_code = exit_code_of(status, state, interruption)
    ending = "finished" if exit_code == 0 else "interrupted" if interruption else "failed"
    record |= {
        "status": ending,
        "exit_code": exit_code,
        "seconds": round(time.monotonic() - began, 1),
        **outcome(run, state, failed=exit_code != 0),
    }
    run.save(record)

    if interruption:
        console.print(Text.assemble(("■ ", "yellow"), f"Stopped by {interruption}; nothing of this run goes on."))
        again = ["stillhouse", verb, "--preset", preset, *redacted(options)]
        console.print(_CONTINUE, soft_wrap=True)
        console.print(f"    {shlex.join(again)}", markup=False, soft_wrap=True)
    elif exit_code:
        _print_failure(run, state, status)
    if as_json:
        print_json(record)
    elif exit_code == 0:
        summary(stdout(), record)
    return exit_code


def exit_code_of(status: int, state: RunState, interruption: Interrupted | None) -> int:
    """What the command exits with; the process's own status counts only where the run said nothing of itself."""
    if interruption:
        return interruption.exit_code
    if status == 0:
        return 0
    return 2 if (state.exit_code or status) == 2 else 1


def reported(run: Run, state: RunState, *, failed: bool) -> dict[str, Any]:
    """How the steps went, and where everything that they said is."""
    steps = [
        {"id": step.id, "title": step.title, "state": step.state, "seconds": step.seconds}
        for step in state.steps.values()
    ]
    why = {"message": state.message, "problems": [vars(one) for one in state.problems]} if failed else {}
    return {"steps": steps, "events": str(run.events), "log": str(run.log), **why}


def outcome(run: Run, state: RunState, *, failed: bool) -> dict[str, Any]:
    """Everything that the run's steps reported, in the form of `run.json` and `--json`."""
    values = state.values
    register = state.results.get("register", {})
    deploy = state.results.get("deploy", {})
    return {
        **reported(run, state, failed=failed),
        "evaluation_dir": values.get("evaluation_dir"),
        "evaluation": _evaluation(values.get("evaluation_dir")),
        "model": {
            "name": register.get("model_name"),
            "version": register.get("version"),
            "run_id": register.get("run_id"),
            "reused": register.get("reused"),
        }
        if register
        else None,
        "outcome": values.get("outcome"),
        "outcome_reason": values.get("outcome_reason"),
        "endpoint": deploy if deploy.get("url") else None,
        "report": values.get("evaluation_dir") and str(Path(values["evaluation_dir"]) / REPORT),
    }


def _evaluation(folder: str | None) -> dict[str, Any] | None:
    """What a program wants of the evaluation: the figures and the choice, without the report's tables and plots."""
    if folder is None:
        return None
    evaluation = EvaluationManifest.load(folder)

    def brief(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in entry.items() if key not in _DETAILS} for entry in entries]

    return {
        "task": evaluation.task,
        "metric": evaluation.metric,
        "policy": evaluation.policy,
        "min_retention": evaluation.min_retention,
        "test_rows": evaluation.test_rows,
        "candidates": brief(evaluation.candidates),
        "unservable": brief(evaluation.unservable),
        "baselines": brief(evaluation.baselines),
        "choice": {key: value for key, value in evaluation.choice.items() if key != "settings"},
    }


def _print_failure(run: Run, state: RunState, status: int) -> None:
    """Say on standard error why the run failed: the input's problems, or the last lines of the log."""
    console = stderr()
    if state.problems:
        print_problems(state.problems)
        return
    failed = ", ".join(step.title for step in state.failed_steps)
    title = f"{failed} failed" if failed else f"The run failed (exit status {status})"
    console.print(Text.assemble(("✗ ", "red"), (title, "bold red")))
    for line in state.message.splitlines():
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if excerpt := log_excerpt(run.log):
        console.print(Text(f"  from {run.log}:", style="dim"), soft_wrap=True)
        for line in excerpt:
            console.print(Text.assemble(("  │ ", "dim"), Text.from_ansi(line)), soft_wrap=True)
    else:
        console.print(Text(f"  the log is empty: {run.log}", style="dim"), soft_wrap=True)
    if any(step.state in ("done", "cached") for step in state.steps.values()):
        console.print(_GO_ON, soft_wrap=True)
