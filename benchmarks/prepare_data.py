"""Claim: `prepare_dataset` takes 10 million short rows in under 1 GB of memory, where reading them at once takes more.

    python benchmarks/prepare_data.py [--rows 10000000] [--folder FOLDER]

Writes a CSV file of unique short rows, then runs, each in a process of its own over that same file: `inspect_source`,
`prepare_dataset`, and a plain `pandas.read_csv` for comparison. Prints rows per second and peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

LIMIT_BYTES = 1_000_000_000
WORDS = ("film", "plot", "cast", "was", "is", "not", "very", "good", "bad", "dull", "fine", "slow", "warm", "odd")


def peak_bytes() -> int:
    """Peak resident memory of this process alone."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_source(path: Path, rows: int) -> None:
    """`rows` unique rows of about 40 characters, one in a hundred with quotation marks and a line break."""
    rng = Random(0)
    phrases = [" ".join(rng.choices(WORDS, k=6)) for _ in range(997)]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("text,label\n")
        for start in range(0, rows, 100_000):
            lines = []
            for index in range(start, min(start + 100_000, rows)):
                text = f"{phrases[index % 997]} {index}"
                if index % 100 == 0:
                    text = f'"so ""{text}"",\nthey said"'
                lines.append(f"{text},{'positive' if index * 7919 % 13 < 6 else 'negative'}\n")
            file.write("".join(lines))


def config_for(path: Path) -> Any:
    from stillhouse.data.config import DataConfig
    from stillhouse.data.schema import Column, RowSchema

    schema = RowSchema((Column("text", "text", "text"), Column("label", "label", "class")))
    return DataConfig(task="classification", schema=schema, data=str(path))


def run_inspect(path: Path) -> int:
    from stillhouse.data.prepare import inspect_source

    report = inspect_source(config_for(path))
    assert not report.problems, report.problems
    return sum(report.rows.values())


def run_prepare(path: Path) -> int:
    from stillhouse.data.prepare import prepare_dataset

    manifest = prepare_dataset(config_for(path), path.parent / "dataset", fingerprint="")
    return sum(split.rows for split in manifest.splits.values())


def run_pandas(path: Path) -> int:
    import pandas

    return len(pandas.read_csv(path))


def measure(function: Callable[[Path], int], path: Path, results: Any) -> None:
    begin = time.perf_counter()
    rows = function(path)
    results.put({"rows": rows, "seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where to write, about 150 bytes a row; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    folder = Path(tempfile.mkdtemp(prefix="stillhouse-bench-", dir=arguments.folder))
    figures: dict[str, dict[str, float]] = {}
    try:
        source = folder / "rows.csv"
        write_source(source, arguments.rows)
        size = source.stat().st_size
        for name, function in (
            ("inspect_source", run_inspect),
            ("prepare_dataset", run_prepare),
            ("pandas.read_csv", run_pandas),
        ):
            results = context.SimpleQueue()
            process = context.Process(target=measure, args=(function, source, results))
            process.start()
            process.join()
            if process.exitcode:
                print(f"{name} failed with exit code {process.exitcode}", file=sys.stderr)
                return 1
            figures[name] = results.get()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    naive = figures["pandas.read_csv"]["peak_bytes"]
    if arguments.json:
        print(json.dumps({"source_bytes": size, **figures}))
    else:
        print(f"{arguments.rows:,} rows, {size / 1e6:,.0f} MB of CSV")
        for name, figure in figures.items():
            speed = figure["rows"] / figure["seconds"]
            peak = figure["peak_bytes"]
            print(f"{name:16} {speed:12,.0f} rows/s {peak / 1e6:8,.0f} MB peak  {peak / naive:5.2f} of pandas")
    within = all(figures[name]["peak_bytes"] < LIMIT_BYTES for name in ("inspect_source", "prepare_dataset"))
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
