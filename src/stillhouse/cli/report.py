"""`stillhouse report`: the comparison of a past run, and its HTML report."""

from __future__ import annotations

import webbrowser

from rich.text import Text

from stillhouse.cli.output import stderr, stdout
from stillhouse.cli.runs import find_run
from stillhouse.cli.summary import print_summary, report_path
from stillhouse.errors import InputError, Problem

__all__ = ["show_report"]


def show_report(name: str | None, *, open_browser: bool, path_only: bool) -> None:
    """Print a run's summary, or only the path of its report.

    Args:
        name: the run, or a part of its name; the last one evaluated without it.
        open_browser: open the report in the web browser.
        path_only: print the path and nothing else.

    Raises:
        InputError: there is no such run, or it has no report.
    """
    run = find_run(name)
    record = run.record()
    path = report_path(record)
    if path is None:
        status = record.get("status") or "unknown"
        what = f"{run.id} has no report: the run's status is {status}, and no report.html is where it was written."
        raise InputError(Problem("RUN", what, "Name another run, or run the pipeline again."))
    if path_only:
        print(path)
    else:
        console = stdout()
        console.print(Text.assemble(("run ", "dim"), (run.id, "bold"), ("  preset ", "dim"), record.get("preset", "")))
        # What the endpoint answered then says nothing about what is served now.
        print_summary(console, record | {"endpoint": None})
    if open_browser and not webbrowser.open(path.as_uri()):
        stderr().print(f"No web browser could be started; open {path} yourself.", soft_wrap=True)
