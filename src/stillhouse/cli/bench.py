"""`stillhouse bench serve`: how much a served model can do, and how long it takes for it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import (
    AsJson,
    ServedModel,
    ServedUrl,
    TlsAuthority,
    TlsCertificate,
    TlsKey,
    WithTls,
    tls_settings,
)
from stillhouse.errors import InputError, Problem, ServingError, StillhouseError

if TYPE_CHECKING:
    from rich.table import Table

    from stillhouse.client import Tls
    from stillhouse.loadtest import LoadResult, Step

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a served model under load.")

_DEMO_TEXTS = 1024
_BUSY = 0.9
"""Cores that the generator keeps busy from which on it is what limits the figures; it runs on one thread."""


@app.callback()
def _bench() -> None:
    """A callback, so that the one command keeps its name."""


@app.command()
def serve(
    url: ServedUrl = None,
    model: ServedModel = None,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What to ask: one text per line; `-` reads standard input.  [default: made-up reviews]",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        str, typer.Option("--concurrency", "-c", metavar="N,N,…", help="Requests under way at once, step by step.")
    ] = "1,2,4,8,16,32",
    seconds: Annotated[float, typer.Option(help="Measured seconds of each step, after one second of warm-up.")] = 5.0,
    batch_size: Annotated[int, typer.Option(help="Texts in each request.")] = 1,
    timeout: Annotated[float, typer.Option(help="Deadline of each request, in seconds.")] = 30.0,
    against: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Another server of the same model; the two take turns at each step."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where bench.json and the plot go.  [default: bench/ in the state folder]",
            show_default=False,
        ),
    ] = None,
    tls: WithTls = False,
    tls_ca: TlsAuthority = None,
    tls_cert: TlsCertificate = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Ramp up the load on a served model, and print throughput and latency at each step.

    Each of N callers asks again once it is answered. The knee is the smallest N that reaches 95% of the best
    throughput without a failed request: beyond it, callers only wait longer. bench.json holds every figure, bench.svg
    and bench.png plot latency against throughput.

    Measure from another machine where you can: on the server's own, the load takes about 0.2 ms of CPU a request.
    """
    from stillhouse.cli.extras import require

    require("tritonclient", "client", "`stillhouse bench serve`")
    from stillhouse.cli.output import print_json, stderr, stdout
    from stillhouse.cli.predict import endpoint
    from stillhouse.loadtest import bench_document, ramp

    secured = tls_settings(tls, tls_ca, tls_cert, tls_key)
    levels, lines = _inputs(
        concurrency,
        texts,
        secured,
        {"--url": url, "--against": against},
        seconds=seconds,
        batch_size=batch_size,
        timeout=timeout,
    )
    url, model = endpoint(url, model)
    folder = _output_folder(output, model)
    settings = {
        "url": url,
        "model": model,
        "against": against,
        "texts": texts or "demo://reviews",
        "different_texts": len(lines),
        "concurrency": levels,
        "seconds": seconds,
        "batch_size": batch_size,
        "timeout": timeout,
        "tls": secured is not None,
        **_circumstances(),
    }
    steps: list[Step] = []
    with _Progress(len(levels) * (2 if against else 1)) as progress:

        def measure(address: str, callers: int) -> LoadResult:
            return progress.run(
                address,
                model,
                lines,
                concurrency=callers,
                seconds=seconds,
                batch_size=batch_size,
                timeout=timeout,
                tls=secured,
            )

        for step in ramp(measure, levels, url, against):
            steps.append(step)
            document = bench_document(steps, settings)
            # After every step, so that a ramp that is cut off leaves what it found.
            (folder / "bench.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            progress.finished(step)
    if as_json:
        print_json(document)
    else:
        stdout().print(_table(steps, document["knee"], against))
    _say_what_limits(steps, document, stderr().print)
    if document["knee"] is None:
        raise _no_knee(steps, url, seconds)
    if plots := _plots(folder, steps, model, document["knee"]):
        stderr().print(f"Wrote bench.json, {plots} to {folder}.", markup=False, soft_wrap=True)
    else:
        note = "matplotlib is absent, so there is no plot (pip install matplotlib)"
        stderr().print(f"Wrote bench.json to {folder}; {note}.", markup=False, soft_wrap=True)


def _inputs(
    concurrency: str,
    texts: str | None,
    tls: Tls | None,
    addresses: Mapping[str, str | None],
    *,
    seconds: float,
    batch_size: int,
    timeout: float,
) -> tuple[list[int], list[bytes]]:
    """Levels of concurrency in ascending order, and the texts.

    Raises:
        InputError: with everything that is wrong with them.
    """
    from stillhouse.client.connection import Connection

    problems = tls.problems() if tls else []
    for option, address in addresses.items():
        if address:
            problems += [replace(problem, where=option) for problem in Connection(url=address).problems()]
    parts = [part.strip() for part in concurrency.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        remedy = "Give whole numbers from 1, with commas: 1,2,4,8."
        problems.append(Problem("--concurrency", f"{concurrency!r} is no list of concurrencies.", remedy))
    for name, value in (("--seconds", seconds), ("--batch-size", batch_size), ("--timeout", timeout)):
        if not 0 < value < math.inf:
            problems.append(Problem(name, f"{value:g} is not above 0."))
    try:
        lines = _texts(texts)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    return sorted({int(part) for part in parts}), lines


def _texts(source: str | None) -> list[bytes]:
    """Lines that are not blank, as UTF-8."""
    if source is None:
        from stillhouse.data.demo import reviews

        return [text.encode() for text, _ in reviews(_DEMO_TEXTS, seed=0)]
    try:
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).expanduser().read_bytes()
    except OSError as error:
        raise InputError(Problem("--texts", f"cannot read {source} ({error.strerror or error}).")) from None
    lines = [line for line in raw.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    if not lines:
        raise InputError(Problem("--texts", f"{source} holds no text.", "Give one text per line."))
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(Problem("--texts", f"{source} is not UTF-8 ({error.reason} at byte {error.start}).")) from None
    return lines


def _output_folder(output: Path | None, model: str) -> Path:
    """The folder for the results, created now: not after minutes of load is it found that it cannot be."""
    from stillhouse.cli.runs import writable_home

    if output is None:
        # A model's name may hold anything that MLflow allows.
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in model)
        output = writable_home() / "bench" / f"{name}-{datetime.now(timezone.utc):%Y%m%dT%H%M%S}"
    folder = output.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "no permission to write there")
    except OSError as error:
        raise InputError(Problem("--output", f"cannot write to {folder} ({error.strerror or error}).")) from None
    return folder


def _circumstances() -> dict[str, Any]:
    from stillhouse import __version__
    from stillhouse.evaluation.machine import describe_machine

    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"started": started, "stillhouse": __version__, "generator": describe_machine(threads=1)}


class _Progress:
    """A bar over all steps on a terminal; one line for each elsewhere."""

    def __init__(self, loads: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from stillhouse.cli.output import stderr

        self._console = stderr()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("connecting", total=float(loads))
        self._done = 0

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def run(
        self, url: str, model: str, texts: Sequence[bytes], *, concurrency: int, seconds: float, **settings: Any
    ) -> LoadResult:
        """Measure once, and move the bar along; the settings are those of `run_load`."""
        from stillhouse.loadtest import run_load

        warmup = 1.0
        self._bar.update(self._task, description=f"{url}, {concurrency} at once")

        def watch(elapsed: float) -> None:
            self._bar.update(self._task, completed=self._done + elapsed / (warmup + seconds))

        result = run_load(
            url,
            model,
            texts,
            concurrency=concurrency,
            seconds=seconds,
            warmup=warmup,
            watch=watch,
            **settings,
        )
        self._done += 1
        return result

    def finished(self, step: Step) -> None:
        if not self._console.is_terminal:
            rate, p99 = step.result.texts_per_second, step.result.p99
            self._console.print(f"{step.concurrency} at once: {rate:.1f} texts/s, p99 {p99:.1f} ms", soft_wrap=True)


def _table(steps: Sequence[Step], knee: int | None, against: str | None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("at once", "texts/s", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(name, justify="right")
    table.add_column("errors")
    if against:
        table.caption = f"Ratios: this server by {against}."
        table.add_column("texts/s ratio", justify="right")
        table.add_column("p99 ratio", justify="right")
    table.add_column("")
    for step in steps:
        result = step.result
        errors = ", ".join(f"{count} {status}" for status, count in sorted(result.errors.items()))
        if step.against and step.against.errors:
            errors += f" (against: {sum(step.against.errors.values())})"
        cells = [f"{value:.1f}" for value in (result.texts_per_second, result.p50, result.p95, result.p99)]
        ratios = [f"{step.throughput_ratio:.2f}×", f"{step.p99_ratio:.2f}×"] if against else []
        mark = "◀ knee" if step.concurrency == knee else ""
        table.add_row(str(step.concurrency), *cells, errors, *ratios, mark, style="bold" if mark else "")
    return table


def _say_what_limits(steps: Sequence[Step], document: dict[str, Any], say: Callable[..., None]) -> None:
    """Two things that make the figures mean less than they seem to."""
    busy = [step.concurrency for step in steps if step.result.cpu_cores >= _BUSY]
    if busy:
        say(
            f"At {', '.join(map(str, busy))} at once the load generator kept a core busy: the server may do more.",
            soft_wrap=True,
        )
    if len(steps) > 1 and document["knee"] == steps[-1].concurrency:
        say("The knee is the last step: try a higher --concurrency.", soft_wrap=True)


def _no_knee(steps: Sequence[Step], url: str, seconds: float) -> StillhouseError:
    """Why no step has a throughput: every request failed, or each answer took longer than was measured."""
    answered = [float(step.result.latencies.min()) for step in steps if step.result.latencies.size]
    if not answered:
        return ServingError(f"{url} answered no request; the table says why.")
    fastest = min(answered) / 1000
    return InputError(
        Problem(
            "--seconds",
            f"no answer of {url} came in the {seconds:g} s measured, the fastest took {fastest:.1f} s.",
            f"Measure for longer: --seconds {math.ceil(10 * fastest)}.",
        )
    )


def _plots(folder: Path, steps: Sequence[Step], model: str, knee: int | None) -> str:
    """Names of the plots written; empty where matplotlib is absent."""
    try:
        from stillhouse.loadtest.plot import save_plot

        names = ("bench.svg", "bench.png")
        save_plot([folder / name for name in names], steps, title=model, knee=knee)
    except ImportError:
        return ""
    return " and ".join(names)
