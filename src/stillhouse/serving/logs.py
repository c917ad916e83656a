"""Log files that are rotated while they are written.

A server keeps the descriptor that it was started with, so a file that it writes itself cannot be renamed under it
without going on to grow, nor truncated without losing the lines between the copy and the cut. So it writes into a pipe,
and its supervisor, which lives as long as it does, writes the file.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

__all__ = ["RotatingLog"]

_BLOCK = 65536  # bytes


class RotatingLog:
    """A log file, and the last few before it as `<name>.1` (the newest), `<name>.2` and so on.

    Args:
        path: the file that is written now; its folder is made.
        largest: bytes after which a new file is begun. Lines stay whole, so that a file may be a line longer.
        keep: how many earlier files are kept.
    """

    def __init__(self, path: Path, *, largest: int, keep: int) -> None:
        self.path = path
        self._largest = largest
        self._keep = keep
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, lines: bytes) -> None:
        """Append whole lines. A disk that is full loses them; whoever logs is never stopped by it."""
        with self._lock, contextlib.suppress(OSError):
            if self.path.exists() and self.path.stat().st_size + len(lines) > self._largest:
                self._rotate()
            with self.path.open("ab") as file:
                file.write(lines)

    def follow(self) -> tuple[int, threading.Thread]:
        """Begin to write what comes through a new pipe, until nobody holds its other end any more.

        Returns:
            The end to write into, which the caller closes once a process has inherited it, and the thread that reads.
        """
        source, sink = os.pipe()
        reader = threading.Thread(target=self._copy, args=(source,), name=f"log {self.path.name}", daemon=True)
        reader.start()
        return sink, reader

    def _copy(self, source: int) -> None:
        rest = b""
        with contextlib.closing(os.fdopen(source, "rb", buffering=0)) as pipe:
            while block := pipe.read(_BLOCK):
                whole, newline, rest = (rest + block).rpartition(b"\n")
                if newline:
                    self.write(whole + newline)
                elif len(rest) > _BLOCK:  # a line without an end is not kept in memory
                    self.write(rest)
                    rest = b""
        if rest:
            self.write(rest + b"\n")

    def _rotate(self) -> None:
        def earlier(number: int) -> Path:
            return self.path.with_name(f"{self.path.name}.{number}")

        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                earlier(number).replace(earlier(number + 1))
        if self._keep:
            self.path.replace(earlier(1))
        else:
            self.path.unlink()
