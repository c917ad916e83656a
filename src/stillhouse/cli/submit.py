"""`stillhouse submit`: start a run on Kubeflow, watch it if asked to, and say what came of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from stillhouse.cli.kubeflow import Place, Work
from stillhouse.cli.launch import Interrupted, log_excerpt, pipelines_command, watch
from stillhouse.cli.output import print_json, print_problems, stderr, stdout
from stillhouse.cli.run import exit_code_of, outcome
from stillhouse.cli.runs import Run, writable_home
from stillhouse.cli.state import RUN, RunState
from stillhouse.cli.summary import fact_table, print_summary
from stillhouse.cli.view import view_for
from stillhouse.redaction import redacted

__all__ = ["submit_pipeline", "watch_run"]


def submit_pipeline(place: Place, work: Work, run_name: str, *, wait: bool, interval: float, as_json: bool) -> int:
    """Upload the pipeline where that is needed, and start a run of it.

    Args:
        place: where Kubeflow Pipelines is.
        work: what is run.
        run_name: empty lets it be chosen.
        wait: watch the run to its end.
        interval: seconds between two looks.
        as_json: one JSON document on standard output.

    Returns:
        The exit code: 0 where the run was started, and succeeded if it was watched; 2 when the input is at fault;
        128 plus the signal's number when watching was stopped; else 1.

    Raises:
        InputError: the state folder cannot be written.
    """
    name = [f"--run-name={run_name}"] if run_name else []
    options = [*place.options, *work.options, *name, *(["--wait"] if wait else [])]
    asked = {"cluster": work.cluster, "preset": work.preset, "settings": redacted(work.settings)}
    return _carry_out(["submit", *options], place, asked, watched=wait, interval=interval, as_json=as_json)


def watch_run(run_id: str, place: Place, *, interval: float, as_json: bool) -> int:
    """Watch a run that was started before; the rest as for `submit_pipeline`."""
    asked = {"cluster": "", "preset": "", "settings": []}
    options = ["watch", *place.options, "--", run_id]
    return _carry_out(options, place, asked, watched=True, interval=interval, as_json=as_json)


def _carry_out(
    command: Sequence[str], place: Place, asked: dict[str, Any], *, watched: bool, interval: float, as_json: bool
) -> int:
    run = Run.create(writable_home())
    state = RunState()
    record: dict[str, Any] = {
        "run": run.id,
        "status": "running",
        **asked,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    run.save(record)
    began = time.monotonic()
    console = stderr()
    verb, *options = command
    full = pipelines_command(verb, f"--folder={run.folder}", f"--interval={interval}", *options)
    heading = f"[bold]stillhouse submit[/bold]  [dim]run[/dim] {escape(run.id)}"
    interruption: Interrupted | None = None
    with view_for(console, state, heading) as view:
        try:
            status = watch(full, run, state, view.update)
        except Interrupted as error:
            interruption, status = error, error.exit_code
        said = state.results.get(RUN, {})
        if said.get("kubeflow_state"):  # the run has ended, and not only the watching
            view.update(state.close())

    exit_code = exit_code_of(status, state, interruption)
    ending = "unwatched" if interruption else "failed" if exit_code else "finished" if watched else "submitted"
    record |= {
        "status": ending,
        "exit_code": exit_code,
        "seconds": round(time.monotonic() - began, 1),
        **outcome(run, state, failed=exit_code != 0),
        "kubeflow": {
            "run": said.get("kubeflow_run"),
            "name": said.get("kubeflow_run_name"),
            "link": said.get("kubeflow_link"),
            "experiment": said.get("kubeflow_experiment"),
            "pipeline": said.get("pipeline"),
            "version": said.get("pipeline_version"),
            "uploaded": said.get("uploaded"),
            "parameters": said.get("parameters"),
        },
        "evaluation_absent": said.get("evaluation_absent"),
    }
    run.save(record)
    if as_json:
        print_json(record)
    if interruption:
        _print_interruption(record["kubeflow"]["run"], place, interruption)
    elif exit_code:
        _print_failure(run, state, status)
    if not as_json and exit_code in (0, 1) and record["kubeflow"]["run"]:
        _print_outcome(record, place, watched=watched)
    return exit_code


def _again(run_id: str, place: Place) -> str:
    return shlex.join(["stillhouse", "submit", "--watch", run_id, *place.options])


def _print_interruption(run_id: str | None, place: Place, interruption: Interrupted) -> None:
    console = stderr()
    if run_id is None:
        console.print(Text.assemble(("■ ", "yellow"), f"Stopped by {interruption} before a run was started."))
        return
    console.print(Text.assemble(("■ ", "yellow"), f"Watching was stopped by {interruption}; the run goes on."))
    console.print("  Watch it again:", soft_wrap=True)
    console.print(f"    {_again(run_id, place)}", markup=False, soft_wrap=True)


def _print_failure(run: Run, state: RunState, status: int) -> None:
    console = stderr()
    if state.problems:
        print_problems(state.problems)
        return
    failed = state.failed_steps
    title = ", ".join(step.title for step in failed) + " failed" if failed else "Failed"
    console.print(Text.assemble(("✗ ", "red"), (title, "bold red")))
    messages = [step.message for step in failed if step.message] or [state.message]
    for line in "\n".join(messages).splitlines():
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if not state.message:  # a bug: the process ended without a word of its own
        console.print(f"  exit status {status}; from {run.log}:", markup=False, soft_wrap=True)
        for line in log_excerpt(run.log):
            console.print(Text.assemble(("  │ ", "dim"), Text.from_ansi(line)), soft_wrap=True)


def _print_outcome(record: dict[str, Any], place: Place, *, watched: bool) -> None:
    """What was started, and what came of it where that is known."""
    console = stdout()
    kubeflow = record["kubeflow"]
    if watched and record["exit_code"] == 0:
        print_summary(console, record)
    facts = fact_table()
    facts.add_row("Run", Text.assemble((str(kubeflow["name"] or ""), "bold"), f"  {kubeflow['run']}"))
    if kubeflow["pipeline"]:
        news = "uploaded" if kubeflow["uploaded"] else "uploaded before"
        facts.add_row("Pipeline", f"{kubeflow['pipeline']}, version {kubeflow['version']} ({news})")
    if kubeflow["experiment"]:
        facts.add_row("Experiment", kubeflow["experiment"])
    facts.add_row("Link", Text(str(kubeflow["link"])))
    if not watched or (record["exit_code"] and not any(step["state"] == "failed" for step in record["steps"])):
        facts.add_row("Watch it", Text(_again(kubeflow["run"], place)))
    console.print(Padding(facts, (0, 0, 0, 2)))
    if watched and record["evaluation_absent"]:
        console.print(Padding(Text(f"{record['evaluation_absent']} See the link.", style="yellow"), (0, 0, 0, 2)))
