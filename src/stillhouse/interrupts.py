"""Being told to end: as an exception, so that whoever has begun something can end it, or take it back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["handlers_kept", "terminable"]


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `SystemExit` in the main thread, as SIGINT raises KeyboardInterrupt.

    Its code is 128 and the signal's number, as a shell tells it.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    with handlers_kept():
        if threading.current_thread() is threading.main_thread():  # only that one may set a handler
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    signal.signal(number, end)
        yield


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back what this process does about signals, whatever a library sets meanwhile and leaves so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None is a handler that Python did not set, and cannot.
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
