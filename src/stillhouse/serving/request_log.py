"""The request log as Parquet: what monitoring reads.

    python -m stillhouse.serving.request_log FOLDER [--every SECONDS] [--keep-days DAYS]

The front model writes segments of JSON lines (`stillhouse.tasks.front_models.request_log`, which also documents the
settings). Here each closed segment becomes one Parquet part, and is removed then:

    FOLDER/parquet/date=2026-11-20/<segment>.parquet      the day, in UTC, on which the segment was begun

One row for each text of each logged request:

    timestamp      timestamp[us, UTC]  when it was answered
    model          string              name of the public model
    release        string              version of the model that answered
    label          string              the most probable label
    confidence     float32             its probability
    probabilities  list<float32>       of all labels
    label_names    list<string>        their names, in the same order
    bytes          int32               length of the text in UTF-8
    tokens         int32               number of tokens that the model read, after cutting
    text           string              null, hash, redacted or full text
    sample         float32             share of requests that was logged when this row was

The metadata of a part's schema counts for its segment: `requests` (answered, logged or not), `dropped` (rows lost to
a full queue or a failing disk) and `expired` (rows of older segments that were dropped for lack of room). Answers from
Triton's response cache never reach the model, and are in none of these.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.errors import InputError, Problem
from stillhouse.tasks.front_models.request_log import FORMAT, close_abandoned

__all__ = ["COUNTERS", "SCHEMA", "Compacted", "compact", "main", "read"]

SCHEMA = pa.schema(
    [
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("model", pa.string()),
        ("release", pa.string()),
        ("label", pa.string()),
        ("confidence", pa.float32()),
        ("probabilities", pa.list_(pa.float32())),
        ("label_names", pa.list_(pa.string())),
        ("bytes", pa.int32()),
        ("tokens", pa.int32()),
        ("text", pa.string()),
        ("sample", pa.float32()),
    ]
)
_MOST_DAYS = 36_500
COUNTERS = ("requests", "dropped", "expired")
_SHARED = ("model", "release", "label_names", "sample")
_NAME = re.compile(r"(\d{4})(\d{2})(\d{2})T\d{6}\.\d{6}Z-.+\.jsonl")


@dataclass(frozen=True)
class Compacted:
    """What one compaction did."""

    segments: int = 0
    rows: int = 0
    unreadable: int = 0
    """Segments that were set aside, with `.unreadable` behind their names."""


def compact(folder: str | os.PathLike[str], *, keep_days: int | None = None) -> Compacted:
    """Turn every closed segment in `folder` into a Parquet part.

    May be interrupted, repeated, and run by several at once: a part's name comes from its segment, which goes only
    after the part is whole.

    Args:
        folder: the log's folder.
        keep_days: remove the parts of days longer ago than this; None keeps all.

    Raises:
        InputError: there is no such folder, or `keep_days` will not do.
        OSError: it cannot be written.
    """
    root = Path(folder)
    problems = _days_problems(keep_days)
    if not root.is_dir():
        problems.append(Problem(str(root), "there is no such folder.", "Give the folder of the request log."))
    if problems:
        raise InputError(problems)
    close_abandoned(root)
    segments = rows = unreadable = 0
    for path in sorted(root.glob("*.jsonl")):
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        try:
            table = _table(path)
        except FileNotFoundError:  # dropped for lack of room, or compacted by another
            continue
        except (ValueError, TypeError):  # and Arrow's, which are among them
            path.rename(path.with_name(f"{path.name}.unreadable"))
            unreadable += 1
            continue
        target = root / "parquet" / f"date={'-'.join(name.groups())}" / f"{path.stem}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        pq.write_table(table, partial, compression="zstd")
        partial.replace(target)
        path.unlink(missing_ok=True)
        segments, rows = segments + 1, rows + table.num_rows
    if keep_days is not None:
        oldest = f"date={datetime.now(timezone.utc) - timedelta(days=keep_days):%Y-%m-%d}"
        for day in (root / "parquet").glob("date=*"):
            if day.name < oldest:
                shutil.rmtree(day, ignore_errors=True)
    return Compacted(segments, rows, unreadable)


def _days_problems(keep_days: int | None) -> list[Problem]:
    if keep_days is None or 1 <= keep_days <= _MOST_DAYS:
        return []
    remedy = f"Give 1 to {_MOST_DAYS}, or leave it out to keep all."
    return [Problem("keep_days", f"{keep_days} will not do.", remedy)]


def read(folder: str | os.PathLike[str], *, since: datetime | None = None, until: datetime | None = None) -> pa.Table:
    """All rows that were compacted, oldest first; the schema's metadata holds the sums of `COUNTERS`.

    Args:
        folder: the log's folder.
        since: rows from this time on, with its time zone.
        until: rows before this time, with its time zone.

    Raises:
        InputError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(Problem(str(root), "there is no such folder.", "Give the folder of the request log."))
    # A segment's rows are younger than its day, and not much.
    first = f"date={(since - timedelta(days=2)).astimezone(timezone.utc):%Y-%m-%d}" if since else ""
    last = f"date={until.astimezone(timezone.utc):%Y-%m-%d}" if until else "date=~"
    counts = dict.fromkeys(COUNTERS, 0)
    tables = [SCHEMA.empty_table()]
    for path in sorted((root / "parquet").glob("date=*/[!.]*.parquet")):
        if not first <= path.parent.name <= last:
            continue
        # Opened by itself: the day in the folder's name shall not become a column.
        table = pq.ParquetFile(path).read()
        for name in COUNTERS:
            counts[name] += int((table.schema.metadata or {}).get(name.encode(), 0))
        tables.append(table.cast(SCHEMA))
    table = pa.concat_tables(tables)
    if since is not None:
        table = table.filter(pc.greater_equal(table["timestamp"], pa.scalar(since, SCHEMA.field(0).type)))
    if until is not None:
        table = table.filter(pc.less(table["timestamp"], pa.scalar(until, SCHEMA.field(0).type)))
    return table.sort_by("timestamp").replace_schema_metadata({name: str(value) for name, value in counts.items()})


def _table(path: Path) -> pa.Table:
    """The rows of one segment.

    A line that is no row, such as the half one of a killed process, is left out.

    Raises:
        ValueError: this is no segment of a format that is known.
    """
    with path.open("rb") as file:  # by bytes: to text files other characters end a line too
        header = json.loads(next(file, b"null"))
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"{path} is no segment of the request log.")
        shared = {name: header[name] for name in _SHARED if name in header}
        rows, counts = [], dict.fromkeys(COUNTERS, 0)
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                body: dict[str, Any] = json.loads(line)
                if "requests" in body:
                    counts = {name: int(body[name]) for name in COUNTERS}
                    continue
                at = datetime.fromtimestamp(body["timestamp"], timezone.utc)
                rows.append({**body, **shared, "timestamp": at})
    schema = SCHEMA.with_metadata({name: str(value) for name, value in counts.items()})
    return pa.Table.from_pylist(rows, schema=schema)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compact once, or again and again until SIGTERM, and then a last time. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m stillhouse.serving.request_log", description="Turn the request log into Parquet."
    )
    parser.add_argument("folder", type=Path, help="what STILLHOUSE_REQUEST_LOG says")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="go on, and compact at this interval")
    parser.add_argument("--keep-days", type=int, metavar="DAYS", help="remove parts of days longer ago than this")
    options = parser.parse_args(arguments)
    problems = _days_problems(options.keep_days)
    if options.every is not None and not 0 < options.every <= threading.TIMEOUT_MAX:
        problems.append(Problem("every", f"{options.every:g} s will not do.", "Give more than 0."))
    if problems:
        print(InputError(problems), file=sys.stderr, flush=True)
        return InputError.exit_code
    if options.every is None:
        return _compact_once(options.folder, options.keep_days)
    # Handlers, since the threads that Arrow started would not block a signal; a container's first process needs them,
    # too, to end at all.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stopping = False
    while not stopping:
        stopping = stop.wait(options.every)
        if options.folder.is_dir():  # the server makes it with its first segment
            _compact_once(options.folder, options.keep_days)
    return 0


def _compact_once(folder: Path, keep_days: int | None) -> int:
    try:
        done = compact(folder, keep_days=keep_days)
    except InputError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        print(f"the request log could not be compacted: {error}", file=sys.stderr, flush=True)
        return 1
    if done.segments or done.unreadable:
        aside = f"; {done.unreadable} segments could not be read" if done.unreadable else ""
        print(f"{done.segments} segments, {done.rows} rows{aside}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
