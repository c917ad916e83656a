"""Being told to end, as an exception."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

TOLD = """
import os, signal
from stillhouse.interrupts import terminable
number = signal.{name}
signal.signal(number, signal.{before})
with terminable():
    os.kill(os.getpid(), number)
    print("went on")
print("the same" if signal.getsignal(number) is signal.{before} else "another")
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_to_end_is_an_exit_with_its_code(name: str, code: int):
    script = TOLD.format(name=name, before="SIG_DFL")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_what_is_ignored_stays_ignored():
    """As nohup has it."""
    script = TOLD.format(name="SIGHUP", before="SIG_IGN")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "went on\nthe same\n"), done.stderr


def test_afterwards_signals_do_what_they_did():
    from stillhouse.interrupts import terminable

    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
