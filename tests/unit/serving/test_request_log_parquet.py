from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import InputError
from stillhouse.serving.request_log import SCHEMA, Compacted, compact, main, read
from stillhouse.tasks.front_models.request_log import FORMAT

NOON = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
HEADER = {"format": FORMAT, "model": "reviews", "release": "7", "label_names": ["no", "yes"], "sample": 0.5}


def row(at=NOON, **changes):
    body = {"label": "yes", "confidence": 0.75, "probabilities": [0.25, 0.75], "bytes": 9, "tokens": 4, "text": None}
    return {"timestamp": at.timestamp(), **body, **changes}


def write(folder, *bodies, at=NOON, suffix=".jsonl", number=1, tail=""):
    folder.mkdir(exist_ok=True)
    path = folder / f"{at:%Y%m%dT%H%M%S.%fZ}-host-9-{number}{suffix}"
    path.write_text("".join(json.dumps(body, ensure_ascii=False) + "\n" for body in bodies) + tail, encoding="utf-8")
    return path


def test_a_segment_becomes_a_part(tmp_path):
    footer = {"requests": 10, "dropped": 1, "expired": 2}
    path = write(tmp_path, HEADER, row(), row(text="one\u2028line\u0085", label="no"), footer)
    assert compact(tmp_path) == Compacted(segments=1, rows=2)
    assert not path.exists()
    (part,) = (tmp_path / "parquet").rglob("*.parquet")
    assert part == tmp_path / "parquet" / "date=2026-11-20" / f"{path.stem}.parquet"
    assert pq.read_schema(part).equals(SCHEMA)
    table = read(tmp_path)
    assert table.schema.equals(SCHEMA)
    assert table.schema.metadata == {b"requests": b"10", b"dropped": b"1", b"expired": b"2"}
    first, second = table.to_pylist()
    assert first == {
        "timestamp": NOON,
        "model": "reviews",
        "release": "7",
        "label": "yes",
        "confidence": 0.75,
        "probabilities": [0.25, 0.75],
        "label_names": ["no", "yes"],
        "bytes": 9,
        "tokens": 4,
        "text": None,
        "sample": 0.5,
    }
    assert (second["label"], second["text"]) == ("no", "one\u2028line\u0085")


def test_repeating_and_interrupting_change_nothing(tmp_path):
    path = write(tmp_path, HEADER, row(), {"requests": 1, "dropped": 0, "expired": 0})
    content = path.read_bytes()
    compact(tmp_path)
    assert compact(tmp_path) == Compacted()
    path.write_bytes(content)  # as if it had been interrupted before the segment was removed
    (tmp_path / "parquet" / "date=2026-11-20" / ".partial.parquet").write_bytes(b"half")
    compact(tmp_path)
    table = read(tmp_path)
    assert table.num_rows == 1
    assert table.schema.metadata[b"requests"] == b"1"


def test_what_a_killed_process_left(tmp_path):
    write(tmp_path, HEADER, row(), suffix=".jsonl.open", tail='{"timestamp": 17')
    write(tmp_path, suffix=".jsonl", number=2)  # killed before its first line
    write(tmp_path, {"format": "something else"}, row(), number=3)
    write(tmp_path, HEADER, row(label=["no text"]), number=4)
    assert compact(tmp_path) == Compacted(segments=1, rows=1, unreadable=3)
    assert read(tmp_path).num_rows == 1
    assert len(list(tmp_path.glob("*.unreadable"))) == 3
    assert compact(tmp_path) == Compacted()


def test_other_files_are_left_alone(tmp_path):
    other = tmp_path / "notes.jsonl"
    other.write_text("mine\n")
    assert compact(tmp_path) == Compacted()
    assert other.read_text() == "mine\n"


def test_time_range(tmp_path):
    days = [NOON + timedelta(days=day) for day in range(5)]
    for number, day in enumerate(days):
        # The last row of a segment may be of the next day.
        write(tmp_path, HEADER, row(day, bytes=number), row(day + timedelta(hours=13), bytes=number), at=day)
    compact(tmp_path)
    assert read(tmp_path)["bytes"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert read(tmp_path, since=days[3])["bytes"].to_pylist() == [3, 3, 4, 4]
    assert read(tmp_path, since=days[1] + timedelta(hours=13))["bytes"].to_pylist() == [1, 2, 2, 3, 3, 4, 4]
    assert read(tmp_path, until=days[1] + timedelta(seconds=1))["bytes"].to_pylist() == [0, 0, 1]
    assert read(tmp_path, since=days[2], until=days[2])["bytes"].to_pylist() == []
    elsewhere = timezone(timedelta(hours=-11))
    assert read(tmp_path, until=days[1].astimezone(elsewhere))["bytes"].to_pylist() == [0, 0]


def test_rows_of_several_processes_are_put_in_order(tmp_path):
    later = NOON + timedelta(seconds=1)
    write(tmp_path, HEADER, row(bytes=1), row(later + timedelta(seconds=1), bytes=3))
    write(tmp_path, HEADER, row(later, bytes=2), at=later)
    compact(tmp_path)
    assert read(tmp_path)["bytes"].to_pylist() == [1, 2, 3]


def test_an_empty_log_has_the_schema(tmp_path):
    assert read(tmp_path).schema.equals(SCHEMA)
    assert read(tmp_path).num_rows == 0
    with pytest.raises(InputError, match="there is no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="there is no such folder"):
        compact(tmp_path / "nowhere")


def test_old_days_go(tmp_path):
    now = datetime.now(timezone.utc)
    for age in (0, 3, 9):
        write(tmp_path, HEADER, row(now - timedelta(days=age)), at=now - timedelta(days=age))
    compact(tmp_path, keep_days=5)
    assert read(tmp_path).num_rows == 2


@pytest.mark.parametrize("days", ["-1", "0", "999999999"])
def test_days_that_cannot_be_kept_are_refused_and_nothing_goes(tmp_path, capsys, days):
    write(tmp_path, HEADER, row())
    compact(tmp_path)
    assert main([str(tmp_path), "--keep-days", days, "--every", "nan"]) == 2
    told = capsys.readouterr().err
    assert f"keep_days: {days} will not do" in told and "every: nan s will not do" in told
    with pytest.raises(InputError, match="keep_days"):
        compact(tmp_path, keep_days=int(days))
    assert read(tmp_path).num_rows == 1


def test_pandas_reads_the_folder(tmp_path):
    write(tmp_path, HEADER, row())
    compact(tmp_path)
    frame = pa.parquet.read_table(tmp_path / "parquet").to_pandas()
    assert frame["label"].tolist() == ["yes"]


def test_command(tmp_path, capsys):
    write(tmp_path, HEADER, row())
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 segments, 1 rows\n"
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_sidecar_goes_on_until_it_is_told_to_stop(tmp_path):
    folder = tmp_path / "log"  # the server has not made it yet
    command = [sys.executable, "-m", "stillhouse.serving.request_log", str(folder), "--every", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            time.sleep(0.5)
            write(folder, HEADER, row())
            assert process.stdout.readline() == "1 segments, 1 rows\n"
            write(folder, HEADER, row(), number=2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0  # after a last compaction
        finally:
            process.kill()
    assert read(folder).num_rows == 2
