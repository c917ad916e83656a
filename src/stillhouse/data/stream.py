"""Bytes of one file on their way to a parser: hashed as they are, then unzipped, then made valid UTF-8."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from stillhouse.data.faults import Unreadable
from stillhouse.data.location import DataFile, describe, scheme_of

__all__ = ["BLOCK_BYTES", "INVALID", "HashingStream", "Utf8Stream", "open_raw", "open_text"]

BLOCK_BYTES = 12 << 20
"""Bytes read at once, of which Arrow holds several. A delimited row longer than this cannot be parsed at all."""

INVALID = "\ufdd0"
"""Stands for each byte that is not UTF-8: a code point that Unicode reserves for never being in a text."""

_BOM = b"\xef\xbb\xbf"


class HashingStream(io.RawIOBase):
    """Reads another stream, hashing every byte, and turns whatever goes wrong below into `Unreadable`."""

    def __init__(self, inner: Any, on_bytes: Callable[[int], None]) -> None:
        self._inner = inner
        self._on_bytes = on_bytes
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            block: bytes = self._inner.read(size)
        except Exception as error:  # each store's client has an exception tree of its own
            raise Unreadable(f"reading broke off ({describe(error)}).", "Try again.") from None
        self._digest.update(block)
        self._on_bytes(len(block))
        return block

    def hexdigest(self) -> str:
        """sha256 of all bytes read so far, as they are stored."""
        return self._digest.hexdigest()

    def drain(self) -> None:
        """Read what is left, so that the digest is of the whole file."""
        while self.read(BLOCK_BYTES):
            pass


class Utf8Stream(io.RawIOBase):
    """Bytes that are certainly UTF-8, without a leading byte-order mark.

    Arrow's CSV reader gives up at a row that is both ragged and not UTF-8. So invalid bytes are replaced before any
    parser sees them, by a mark which can be found again in the rows, and reading goes on.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._pending = b""
        self._tail = b""
        self._started = False
        self.invalid = False
        """Whether any byte was replaced so far."""
        self.utf16 = False
        """Whether the file starts as UTF-16 does."""
        self.quotes = 0
        """Quotation marks read so far."""

    def readable(self) -> bool:
        return True

    def push_back(self, block: bytes) -> None:
        """Give bytes back, to be read again."""
        self._pending = block + self._pending

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(BLOCK_BYTES), b""))
        if not self._pending:
            self._pending = self._next_block(max(size, 1 << 16))
        block, self._pending = self._pending[:size], self._pending[size:]
        return block

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def _next_block(self, size: int) -> bytes:
        while True:
            try:
                raw: bytes = self._inner.read(size)
            except (OSError, EOFError, zlib.error) as error:
                raise Unreadable(f"is not a whole gzip file ({describe(error)}).", "Compress it again.") from None
            block = self._tail + raw
            if not self._started:
                if len(block) < 3 and raw:
                    self._tail = block
                    continue
                self._started = True
                self.utf16 = block.startswith((b"\xff\xfe", b"\xfe\xff"))
                block = block.removeprefix(_BOM)
            valid, self._tail = self._valid(block, final=not raw)
            if valid or not raw:
                self.quotes += valid.count(b'"')
                return valid

    def _valid(self, block: bytes, *, final: bool) -> tuple[bytes, bytes]:
        """The block as valid UTF-8, and the start of a character that its end cuts through."""
        try:
            block.decode()
            return block, b""
        except UnicodeDecodeError as error:
            if not final and error.reason == "unexpected end of data" and error.end == len(block):
                return block[: error.start], block[error.start :]
        self.invalid = True
        tail = b""
        if not final:
            cut = next((i for i in range(1, min(4, len(block) + 1)) if block[-i] >= 0xC0), 0)
            if cut and cut < (2 if block[-cut] < 0xE0 else 3 if block[-cut] < 0xF0 else 4):
                block, tail = block[:-cut], block[-cut:]
        text = block.decode(errors="surrogateescape")
        return "".join(INVALID if "\ud800" <= c <= "\udfff" else c for c in text).encode(), tail


@contextlib.contextmanager
def open_raw(file: DataFile, on_bytes: Callable[[int], None]) -> Iterator[HashingStream]:
    """The file's stored bytes, in order, hashed.

    Raises:
        Unreadable: it is not there, or cannot be read.
    """
    # Web servers need not answer ranges; block_size=0 asks fsspec for one plain request.
    options = {"block_size": 0} if scheme_of(file.path) in ("http", "https") else {}
    try:
        inner = file.filesystem.open(file.path, "rb", **options)
    except FileNotFoundError:
        raise Unreadable("there is no such file.", "Check the path.") from None
    except Exception as error:  # each store's client has an exception tree of its own
        raise Unreadable(f"cannot be opened ({describe(error)}).", "Check the address and the credentials.") from None
    try:
        yield HashingStream(inner, on_bytes)
    finally:
        with contextlib.suppress(Exception):
            inner.close()


@contextlib.contextmanager
def open_text(file: DataFile, on_bytes: Callable[[int], None]) -> Iterator[tuple[Utf8Stream, HashingStream]]:
    """The file's text as UTF-8 bytes, and beneath it the stored bytes' hash.

    Raises:
        Unreadable: it is not there, cannot be read, or is not what its suffix says.
    """
    with open_raw(file, on_bytes) as raw:
        yield Utf8Stream(gzip.GzipFile(fileobj=raw) if file.compressed else raw), raw
