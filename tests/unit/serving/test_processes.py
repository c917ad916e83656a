"""Which process is which."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from stillhouse.serving.processes import is_running, start_ticks


def test_a_process_is_known_by_when_it_was_made():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        ticks = start_ticks(process.pid)
        assert is_running(process.pid, ticks)
        assert not is_running(process.pid, ticks + 1)  # another one that was given its pid
        process.communicate(b"\n")
    assert start_ticks(process.pid) == 0
    assert not is_running(process.pid, ticks)
    assert not is_running(0, 0)


def test_one_that_has_ended_and_was_not_waited_for_does_not_run():
    process = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not is_running(process.pid, start_ticks(process.pid))
    process.wait()


def test_its_name_may_hold_anything():
    """Spaces and parentheses come before what is read."""
    script = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) Z 1 (b'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        before = start_ticks(process.pid)
        process.stdout.readline()
        assert start_ticks(process.pid) == before > 0
        process.communicate(b"\n")
