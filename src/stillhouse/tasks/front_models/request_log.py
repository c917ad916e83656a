"""The request log: a sample of the served texts with their predictions, written by the front model as JSON lines.

This file is copied as it stands into every package, beside `model.py`, and runs inside Triton: standard library only.
`stillhouse.serving.request_log` turns what it writes into Parquet, and documents the columns. Off unless the server's
environment names a folder:

    STILLHOUSE_REQUEST_LOG                  folder, an absolute path; the log is off without it
    STILLHOUSE_REQUEST_LOG_SAMPLE           share of the requests that is logged, 0 to 1; 0.01 if not set
    STILLHOUSE_REQUEST_LOG_TEXT             what becomes of the text, below; `drop` if not set
    STILLHOUSE_REQUEST_LOG_REDACT           /path/to/file.py:function, called with each text after the built-in
                                            redaction; returns the text to log, or None for none
    STILLHOUSE_REQUEST_LOG_KEY              key of the hashes; without one, short texts can be guessed from theirs
    STILLHOUSE_REQUEST_LOG_SEGMENT_BYTES    a segment is closed at this size, 16 MiB if not set,
    STILLHOUSE_REQUEST_LOG_SEGMENT_SECONDS  or at this age, 300 if not set
    STILLHOUSE_REQUEST_LOG_MAX_BYTES        of all segments in the folder, 1 GiB if not set; the oldest are dropped

    drop      no text (the default)
    hash      hexadecimal HMAC-SHA256 of the text: equal texts can be told, and nothing else
    redacted  the text, with e-mail addresses, and numbers that look like those of phones and cards, masked
    full      the text as it came

A setting that cannot be understood keeps the model from loading: a log that says more than was meant cannot be taken
back. Afterwards the log neither delays nor fails a request. What does not fit into its queue, or cannot be written, is
dropped and counted.

A segment, `TIME-HOST-PID-NUMBER.jsonl`, has `.open` behind its name and a lock on it while its process writes it. Its
first line says what all rows share, its last one counts; one from a process that was killed has no last line:

    {"format": …, "model": …, "release": …, "label_names": […], "sample": 0.01}
    {"timestamp": 1700000000.25, "label": …, "confidence": 0.9, "probabilities": […], "bytes": 12, "tokens": 5,
     "text": …}
    {"requests": 5000, "dropped": 0, "expired": 0}
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import hmac
import importlib.util
import json
import math
import os
import random
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "VARIABLE", "RequestLog", "Settings", "close_abandoned", "redact"]

FORMAT = "stillhouse/request-log/v1"
VARIABLE = "STILLHOUSE_REQUEST_LOG"

_KNOWN = ("", "_SAMPLE", "_TEXT", "_REDACT", "_KEY", "_SEGMENT_BYTES", "_SEGMENT_SECONDS", "_MAX_BYTES")
_TEXT_MODES = ("drop", "hash", "redacted", "full")
_QUEUE_BYTES = 16 * 2**20
_ROW_BYTES = 500  # about what a queued row takes besides its text
_WAKE = 0.25  # seconds between two looks at the queue: cheaper for the requests than waking the thread for each
_PATIENCE = 5.0  # seconds that closing may take, within the 10 that Triton gives its models
_SILENCE = 60.0  # seconds between two warnings

# Each matches in time linear in the text's length, whatever it is: a text shall not be able to stop the server. What
# looks like a date or a list of numbers is masked too; too much is better than too little.
_ATOM = r"[\w.!#$%&'*+/=?^`{|}~-]"
_EMAIL = re.compile(rf"(?<!{_ATOM}){_ATOM}+[@＠][\w-]+(?:\.[\w-]+)*")
_NUMBER = re.compile(r"\+?\d(?:[\s().,/\u2010-\u2015-]{0,3}\d){6,}")
_CARD_DIGITS = 13


def redact(text: str) -> str:
    """Mask e-mail addresses, and numbers of 7 digits and more: `[CARD]` from 13 digits on, else `[PHONE]`."""
    if "@" in text or "＠" in text:
        text = _EMAIL.sub("[EMAIL]", text)
    return _NUMBER.sub(_mask_number, text)


def _mask_number(match: re.Match[str]) -> str:
    return "[CARD]" if sum(map(str.isdigit, match[0])) >= _CARD_DIGITS else "[PHONE]"


@dataclass(frozen=True)
class Settings:
    """What to log, and where."""

    folder: Path
    sample: float = 0.01
    text: str = "drop"
    hook: Callable[[str], str | None] | None = None
    key: bytes = b""
    segment_bytes: int = 16 * 2**20
    segment_seconds: float = 300.0
    max_bytes: int = 2**30

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings | None:
        """The settings; None where the log is off.

        Raises:
            ValueError: naming every variable that cannot be understood.
        """
        values = {
            name.removeprefix(VARIABLE): value
            for name, value in environment.items()
            if name.startswith(VARIABLE) and value
        }
        if not values.get(""):
            return None
        # One that is misspelt would log more than was meant, and so would an absent secret.
        faults = [
            f"{VARIABLE}{name} is unknown. There are: {', '.join(VARIABLE + known for known in _KNOWN)}."
            for name in sorted(values)
            if name not in _KNOWN
        ]
        if environment.get(f"{VARIABLE}_KEY") == "":
            faults.append(f"{VARIABLE}_KEY is empty. Give a key, or leave it out for hashes without one.")

        def number(name: str, default: float, lowest: float, highest: float) -> float:
            text = values.get(name, str(default))
            with contextlib.suppress(ValueError):
                if lowest <= float(text) <= highest:
                    return float(text)
            faults.append(f"{VARIABLE}{name}: {text!r} is no number from {lowest:g} to {highest:g}.")
            return default

        folder, text, hook = Path(values[""]), values.get("_TEXT", cls.text), None
        if not folder.is_absolute():
            faults.append(f"{VARIABLE}: {str(folder)!r} is no absolute path.")
        if text not in _TEXT_MODES:
            faults.append(f"{VARIABLE}_TEXT: {text!r} is unknown. Choose one of: {', '.join(_TEXT_MODES)}.")
        if "_REDACT" in values:
            try:
                hook = _load_hook(values["_REDACT"])
            except Exception as error:  # whatever that file raises
                faults.append(f"{VARIABLE}_REDACT: {values['_REDACT']!r} cannot be loaded: {error}")
            if text != "redacted":
                faults.append(f"{VARIABLE}_REDACT is for {VARIABLE}_TEXT=redacted, and that is {text!r}.")
        settings = cls(
            folder=folder,
            sample=number("_SAMPLE", cls.sample, 0, 1),
            text=text,
            hook=hook,
            key=values.get("_KEY", "").encode(),
            segment_bytes=int(number("_SEGMENT_BYTES", cls.segment_bytes, 1, 2**40)),
            segment_seconds=number("_SEGMENT_SECONDS", cls.segment_seconds, 0.1, 86400),
            max_bytes=int(number("_MAX_BYTES", cls.max_bytes, 1, 2**50)),
        )
        if faults:
            raise ValueError("the request log cannot be set up:\n" + "\n".join(faults))
        return settings


def _load_hook(reference: str) -> Callable[[str], str | None]:
    path, _, name = reference.rpartition(":")
    spec = importlib.util.spec_from_file_location("stillhouse_request_log_hook", path)
    if spec is None or spec.loader is None:
        raise ValueError("give /path/to/file.py:function")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = getattr(module, name)
    if not callable(hook):
        raise TypeError(f"{name} is not a function")
    return hook  # type: ignore[no-any-return]


def _place(error: Exception) -> str:
    """File and line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


class RequestLog:
    """Takes requests from the server's thread, and writes them in a thread of its own.

    Args:
        settings: what to log, and where.
        model: name of the public model.
        release: its version.
        label_names: name of each column of the probabilities.
        count_tokens: how many tokens the model reads of each text; called in the log's thread.
        chance: decides which requests are logged; a number from 0 to 1 at each call.
    """

    PROBE_ID = "stillhouse-probe"
    """Request id of those who only ask whether the server answers: they are not to be recorded."""

    def __init__(
        self,
        settings: Settings,
        *,
        model: str,
        release: str,
        label_names: Sequence[str],
        count_tokens: Callable[[Sequence[str]], Sequence[int]],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._count_tokens = count_tokens
        self._chance = chance
        header = {"format": FORMAT, "model": model, "release": release, "label_names": list(label_names)}
        self._segments = _Segments(settings, {**header, "sample": settings.sample})
        self._lock = threading.Lock()
        self._queue: list[tuple[float, Sequence[str], Sequence[str], Any]] = []
        self._queued = 0  # bytes, about
        self._requests = self._dropped = 0  # since they were last handed to the segments
        self._silent_until = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def record(self, texts: Sequence[str], labels: Sequence[str], probabilities: Any) -> None:
        """Log one answered request, if chance has it.

        Args:
            texts: n texts.
            labels: name of the most probable label of each.
            probabilities: float array [n, labels], not to be changed afterwards.
        """
        chosen = self._chance() < self._settings.sample
        size = sum(map(len, texts)) + _ROW_BYTES * len(texts) if chosen else 0
        with self._lock:
            self._requests += 1
            if not chosen:
                return
            if self._queued + size > _QUEUE_BYTES:
                self._dropped += len(texts)
                return
            self._queued += size
            self._queue.append((time.time(), texts, labels, probabilities))

    def close(self) -> None:
        """Write what is queued, and close the segment."""
        self._closing.set()
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(_WAKE)
            with self._lock:
                queue, self._queue, self._queued = self._queue, [], 0
                self._segments.requests += self._requests
                self._segments.dropped += self._dropped
                self._requests = self._dropped = 0
            for timestamp, texts, labels, probabilities in queue:
                try:
                    self._segments.write("".join(self._lines(timestamp, texts, labels, probabilities)).encode())
                except Exception as error:
                    self._segments.dropped += len(texts)
                    self._warn(f"the request log lost rows: {type(error).__name__}: {error}")
            try:
                self._segments.tend(closing)
            except Exception as error:
                self._warn(f"the request log cannot be tended: {type(error).__name__}: {error}")

    def _lines(self, timestamp: float, texts: Sequence[str], labels: Sequence[str], probabilities: Any) -> list[str]:
        lines = []
        tokens = self._count_tokens(texts)
        for text, label, row, count in zip(texts, labels, probabilities.tolist(), tokens, strict=True):
            body = {
                "timestamp": round(timestamp, 6),
                "label": label,
                "confidence": round(max(row), 6),
                "probabilities": [round(value, 6) for value in row],
                "bytes": len(text.encode()),
                "tokens": count,
                "text": self._text(text),
            }
            lines.append(json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n")
            # Lets a waiting request have the interpreter now, and not at the end of its time slice of 5 ms.
            time.sleep(0)
        return lines

    def _text(self, text: str) -> str | None:
        mode = self._settings.text
        if mode == "drop":
            return None
        if mode == "hash":
            return hmac.new(self._settings.key, text.encode(), hashlib.sha256).hexdigest()
        if mode == "full":
            return text
        masked: str | None = redact(text)
        if self._settings.hook is not None:
            try:
                masked = self._settings.hook(redact(text))
                if masked is not None and not isinstance(masked, str):
                    raise TypeError(f"it returned {type(masked).__name__}, not text")
                if masked is not None:
                    masked.encode()
            except Exception as error:  # the row is kept, and no text is better than one that was not redacted
                # Not the error's message, which may hold what was to be redacted.
                self._warn(f"the request log's redaction hook failed: {type(error).__name__} at {_place(error)}")
                return None
        return masked

    def _warn(self, message: str) -> None:
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SILENCE
            print(message, file=sys.stderr, flush=True)


class _Segments:
    """The segments of one process, written by one thread.

    Attributes:
        requests: answered requests since the last segment was closed, logged or not.
        dropped: rows that should have been logged since then, and were not.
    """

    def __init__(self, settings: Settings, header: Mapping[str, Any]) -> None:
        self._settings = settings
        self._header = _line(header)
        self._path: Path | None = None  # of the open segment
        self._file = -1
        self._size = 0
        self._deadline = math.inf
        self._number = 0
        self._expired = 0
        self.requests = self.dropped = 0

    def write(self, data: bytes) -> None:
        """Append lines, to a new segment where the present one is full.

        Raises:
            OSError: nothing was appended.
        """
        if self._path is not None and self._size + len(data) > self._settings.segment_bytes:
            self._close()
        if self._path is None:
            self._open()
        self._append(data)

    def tend(self, closing: bool) -> None:
        """Close the segment if it is old enough, or in any case when `closing`."""
        if self._path is not None and (closing or time.monotonic() >= self._deadline):
            self._close()

    def _open(self) -> None:
        self._settings.folder.mkdir(parents=True, exist_ok=True)
        close_abandoned(self._settings.folder)
        self._make_room()
        now = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06}Z"
        self._number += 1
        name = f"{stamp}-{socket.gethostname()}-{os.getpid()}-{self._number}.jsonl"
        hidden = self._settings.folder / f".{name}"
        self._file = os.open(hidden, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Locked before it can be seen, so that nobody takes it for one that was abandoned.
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._size = 0
            self._append(self._header)
            hidden.rename(self._settings.folder / f"{name}.open")
        except BaseException:
            os.close(self._file)
            hidden.unlink(missing_ok=True)
            raise
        self._path = self._settings.folder / f"{name}.open"
        self._deadline = time.monotonic() + self._settings.segment_seconds

    def _append(self, data: bytes) -> None:
        try:
            written = os.write(self._file, data)
            if written != len(data):
                raise OSError(f"{self._settings.folder} is full.")
        except OSError:
            os.ftruncate(self._file, self._size)  # no half line
            raise
        self._size += len(data)

    def _close(self) -> None:
        path, self._path = self._path, None
        assert path is not None
        try:
            self._append(_line({"requests": self.requests, "dropped": self.dropped, "expired": self._expired}))
            self.requests = self.dropped = self._expired = 0
            path.rename(path.with_suffix(""))
        finally:
            os.close(self._file)

    def _make_room(self) -> None:
        """Drop the oldest closed segments of all processes until the new one may grow to its size."""
        sizes = {}
        for path in self._settings.folder.glob("*.jsonl*"):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        excess = sum(sizes.values()) + self._settings.segment_bytes - self._settings.max_bytes
        for path in sorted(path for path in sizes if path.suffix == ".jsonl"):  # a name begins with its time
            if excess <= 0:
                break
            with contextlib.suppress(FileNotFoundError):  # another process, or the compaction, was faster
                with path.open("rb") as file:
                    blocks = iter(functools.partial(file.read, 2**20), b"")
                    rows = sum(block.count(b"\n") for block in blocks) - 2  # without the first and the last line
                path.unlink()
                self._expired += max(0, rows)
            excess -= sizes[path]


def _line(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def close_abandoned(folder: Path) -> list[Path]:
    """Rename the segments that killed processes left open as if they had been closed. Returns their new paths."""
    closed = []
    for path in sorted(folder.glob("*.jsonl.open")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer's lock goes when that ends, however it ends
            closed.append(path.rename(path.with_suffix("")))
    return closed
