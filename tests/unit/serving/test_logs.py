from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.serving.logs import RotatingLog

WRITER = "import sys\nfor number in range(int(sys.argv[1])): print(f'line {number:06d} ' + 'x' * 40)\n"


def written(folder, log):
    """The lines of all files, the oldest first."""
    earlier = sorted(folder.glob(f"{log.path.name}.*"), key=lambda path: -int(path.suffix[1:]))
    return [line for path in [*earlier, log.path] for line in path.read_text().splitlines()]


def run(log, count):
    sink, reader = log.follow()
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(count)], stdout=sink)
    os.close(sink)
    assert process.wait() == 0
    reader.join(timeout=30)
    assert not reader.is_alive()


def test_no_line_is_lost_or_cut_where_the_file_changes(tmp_path):
    log = RotatingLog(tmp_path / "logs" / "server.log", largest=100_000, keep=1000)
    run(log, 20_000)
    lines = written(tmp_path / "logs", log)
    assert lines == [f"line {number:06d} " + "x" * 40 for number in range(20_000)]
    files = list((tmp_path / "logs").iterdir())
    assert len(files) > 5
    assert all(path.stat().st_size <= 100_000 for path in files)


def test_only_the_last_files_stay(tmp_path):
    log = RotatingLog(tmp_path / "server.log", largest=100_000, keep=2)
    run(log, 20_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server.log", "server.log.1", "server.log.2"]
    lines = written(tmp_path, log)
    assert lines[-1].startswith("line 019999 ")
    assert lines == [f"line {number:06d} " + "x" * 40 for number in range(20_000 - len(lines), 20_000)]


def test_a_started_file_is_continued(tmp_path):
    for word in (b"one\n", b"two\n"):
        RotatingLog(tmp_path / "server.log", largest=1000, keep=1).write(word)
    assert (tmp_path / "server.log").read_text() == "one\ntwo\n"


def test_a_last_line_without_an_end_is_kept(tmp_path):
    log = RotatingLog(tmp_path / "server.log", largest=1000, keep=1)
    sink, reader = log.follow()
    os.write(sink, b"whole\nhalf")
    os.close(sink)
    reader.join(timeout=10)
    assert (tmp_path / "server.log").read_text() == "whole\nhalf\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_stops_nobody(tmp_path):
    (tmp_path / "server.log").symlink_to("/dev/full")
    log = RotatingLog(tmp_path / "server.log", largest=1 << 30, keep=1)
    run(log, 5000)  # more than a pipe holds: it would hang if nobody read on
