"""`stillhouse compare`: sizes, arithmetic, speed, memory and quality of models, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import AsJson
from stillhouse.progress import Step

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["compare"]

_BAR_WIDTH = 40


def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="`bert-base`, `bert-large`, `distilbert-base`, `albert-base`, `albert-large`, `albert-xlarge`, "
            "`albert-xxlarge`; a config (a JSON file, or a folder without weights); a checkpoint (a folder, "
            "hub://OWNER/NAME, minilm://); scratch://FAMILY?KEY=VALUE.",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Time the models, or only count what their configs say.")
    ] = True,
    data: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="Labelled rows to judge quality on, which no model has seen: a file, folder or URL as for "
            "`stillhouse run`, or a dataset artifact, of which the test split is taken.",
        ),
    ] = "",
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the texts.")] = "text",
    label_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the labels.")] = "label",
    quality_metric: Annotated[str, typer.Option(metavar="NAME", help="`accuracy`, `macro_f1` or `mcc`.")] = "accuracy",
    min_retention: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the best quality that a recommended model must keep.")
    ] = 0.97,
    length: Annotated[int, typer.Option(metavar="N", help="Tokens of one sentence.")] = 128,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Sentences of a batch, for throughput and for a training step.")
    ] = 8,
    rounds: Annotated[int, typer.Option(metavar="N", help="Times that each model takes its turn.")] = 5,
    threads: Annotated[
        int, typer.Option(metavar="N", help="Threads of each model.  [default: all cores]", show_default=False)
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Write compare.json, compare.md and the plots there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare models by what they cost and give.

    Prints the parameters (in all, of the embeddings, of the encoder), the bytes of the weights and the FLOPs for one
    sentence; measures latency, throughput, peak memory and the time of a training step, each model in a process of its
    own and by turns, with ratios against the first; judges quality where --data is given; and says which one to take
    for real-time, for memory-constrained and for fast-deployment use, and why.

    Named architectures and configs get random weights, which are as fast as trained ones. --no-measure needs no
    weights and takes seconds.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import print_json, stderr, stdout

    require("torch", "train", "`stillhouse compare`")
    require("transformers", "train", "`stillhouse compare`")
    from stillhouse.comparison import CompareConfig
    from stillhouse.comparison import compare as run
    from stillhouse.comparison.report import file_names

    config = CompareConfig(
        models=tuple(models or ()),
        measure=measure,
        length=length,
        batch_size=batch_size,
        rounds=rounds,
        threads=threads,
        data=data,
        text_column=text_column,
        label_column=label_column,
        quality_metric=quality_metric,
        min_retention=min_retention,
    )
    with _Progress() as progress:
        document = run(config, output_dir=output, step=progress)
    if as_json:
        print_json(document)
    else:
        _print(stdout(), document)
    if output is not None:
        names = ", ".join(name for name in file_names(document) if (output.expanduser() / name).is_file())
        stderr().print(f"Wrote {names} to {output}.", markup=False, soft_wrap=True)


class _Progress(Step):
    """A bar on a terminal; elsewhere a line for each thing that is begun."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from stillhouse.cli.output import stderr

        super().__init__("compare")
        self._console = stderr()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("starting", total=None)
        self._note = ""

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Move the bar along, or say what has begun."""
        self._bar.update(self._task, description=note, completed=done, total=total)
        if not self._console.is_terminal and note != self._note:
            self._note = note
            self._console.print(note, markup=False, style="dim", soft_wrap=True)


def _print(console: Console, document: Mapping[str, Any]) -> None:
    """Both tables, bars of the parameters and of the latency, the recommendations, and what needs a word."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from stillhouse.comparison.report import count_columns, measure_columns, notes, table_cells

    models = document["models"]
    for columns in (count_columns(document), measure_columns(document)):
        if columns:
            table = Table(box=box.SIMPLE_HEAD)
            for column, _ in columns:
                table.add_column(column.title, justify="right" if column.number else "left", overflow="fold")
            for cells in table_cells(models, columns):
                table.add_row(*map(Text, cells))
            console.print(table)
    _bars(console, "parameters, millions", [(m["name"], m["parameters"] / 1e6) for m in models])
    if models[0]["latency_ms"] is not None:
        _bars(console, "median latency, milliseconds", [(m["name"], m["latency_ms"]["p50"]) for m in models])
    for use, entry in document["recommendations"].items():
        console.print(Text.assemble((use, "bold"), ": ", (entry["model"], "green"), f". {entry['reason']}"))
    if said := notes(document):
        console.print()
        for note in said:
            console.print(Text(note, style="dim"))


def _bars(console: Console, title: str, values: Sequence[tuple[str, float]]) -> None:
    """A bar for each model, to one scale."""
    from rich.text import Text

    width = max(len(name) for name, _ in values)
    most = max(value for _, value in values)
    console.print(Text(title, style="dim"))
    for name, value in values:
        bar = "█" * max(1, round(_BAR_WIDTH * value / most))
        console.print(Text.assemble(f"  {name:<{width}}  ", (bar, "blue"), f" {value:,.1f}"), soft_wrap=True)
    console.print()
