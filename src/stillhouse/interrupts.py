"""Being told to end: as an exception, so that whoever has begun something can end it, or take it back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["handlers_kept", "terminable"]


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `SystemExit(143)` in the main thread, as SIGINT raises KeyboardInterrupt."""

    def end(*_: object) -> None:
        raise SystemExit(143)

    with handlers_kept():
        if threading.current_thread() is threading.main_thread():  # only that one may set a handler
            signal.signal(signal.SIGTERM, end)
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
