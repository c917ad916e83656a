"""The queue of a served model: what waits is taken in batches, and what would wait too long is refused at once.

This file is copied as it stands into every package, beside `model.py`, and runs inside Triton: standard library only.

Triton has such a queue (`dynamic_batching`, `default_queue_policy`), which cannot be used: as soon as its length or its
waiting time is bounded, a request that comes just when the model is done with the last one is left alone for half a
second, and in the long run ever fewer are taken (https://github.com/triton-inference-server/server/issues/8870).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import Generic, NamedTuple, TypeVar

__all__ = ["BatchQueue", "QueueFull", "Totals"]

Item = TypeVar("Item")

_LARGE = 8.0
"""An item of more rows than a batch may wait longer, by so many times what those rows take: a list that one caller
sends in a few large requests would else be refused because of itself."""
_ALONE = 1.0
"""Seconds for which nobody has come while another was waiting or at work, until a caller counts as a lone one."""
_PASSING = 3
"""Items of a lone caller in a row that may pass the queue. While the next one is at work in the queue's way, others are
seen to come."""
_SPARE = 8
"""Urgent items for which there is room where all others' is taken. More of them are a sign that nothing moves."""
_MEMORY = 0.2
"""Weight of the newest batch in the mean time that a row takes."""


class QueueFull(Exception):
    """An item would wait too long, or there are too many. The message is meant for the caller."""


class Totals(NamedTuple):
    """What went through a queue since it was made."""

    items: int
    """Handed out in batches."""
    refused: int
    """Refused at once, or handed out as too late."""
    queue_seconds: float
    """That items waited, all together."""
    compute_seconds: float
    """That items were at work, all together."""
    waiting: int
    """Items that wait now."""


class BatchQueue(Generic[Item]):
    """First come, first served, by batches; any number of threads may add and take.

    Args:
        max_items: items that may wait.
        max_wait: seconds that an item may wait: one that is expected to wait longer is refused, and one that did is
            handed out apart. Items of more rows than `batch_rows` may wait longer, in proportion. 0 is no limit.
        batch_rows: rows of one batch; an item of more rows is a batch of its own.
    """

    def __init__(self, *, max_items: int, max_wait: float, batch_rows: int) -> None:
        self._max_items, self._max_wait, self._batch_rows = max_items, max_wait, batch_rows
        self._waiting: deque[tuple[Item, int, float, float]] = deque()
        self._rows_waiting = 0
        self._rows_at_work = 0
        self._seconds_per_row = 0.0
        self._last_done = 0.0
        self._closed = False
        self._crowded = -math.inf  # when somebody came while another was waiting or at work
        self._passed = 0  # items in a row that passed the queue
        self._items, self._refused = 0, 0
        self._queue_seconds, self._compute_seconds = 0.0, 0.0
        self._changed = threading.Condition()

    def add(self, item: Item, rows: int, *, urgent: bool = False) -> None:
        """Put an item at the end, or one that is urgent at the beginning, where it waits for what is at work only.

        Raises:
            QueueFull: there is no room for it, or it would wait too long, which nothing urgent does.
        """
        with self._changed:
            allowed = self._max_wait + _LARGE * max(0, rows - self._batch_rows) * self._seconds_per_row
            if urgent:
                allowed = math.inf
            elif self._waiting or self._rows_at_work:
                self._crowded = time.monotonic()
            self._passed = 0
            if refusal := self._refusal(allowed, self._max_items + _SPARE * urgent):
                self._refused += 1
                raise QueueFull(refusal)
            now = time.monotonic()
            put = self._waiting.appendleft if urgent else self._waiting.append
            put((item, rows, now, now + allowed))
            self._rows_waiting += rows
            self._changed.notify()

    def begin(self, rows: int) -> bool:
        """Begin with a lone caller's item past the queue, as a batch of its own; `done` ends it.

        Who works past the queue takes nothing in meanwhile, and what comes then waits where it is not seen. Pauses do
        not tell whether something waits there: on a busy machine they grow. So only a few items in a row may pass.

        Returns:
            Whether it may begin. If not, it is to be added.
        """
        with self._changed:
            alone = time.monotonic() - self._crowded >= _ALONE
            if self._closed or self._waiting or self._rows_at_work or not alone or self._passed >= _PASSING:
                return False
            self._passed += 1
            self._rows_at_work += rows
            return True

    def _refusal(self, allowed: float, room: int) -> str:
        """Why an item that may wait for `allowed` seconds, one of `room`, cannot be taken in now; empty if it can."""
        if self._closed:
            return "the model is being unloaded"
        if len(self._waiting) >= room:
            return f"{len(self._waiting)} requests are waiting already"
        # Half of what is at work is still to be done, on the average.
        wait = (self._rows_waiting + self._rows_at_work / 2) * self._seconds_per_row
        if self._max_wait and wait > allowed:
            return f"it would take {1000 * wait:.0f} ms until its turn, and {1000 * allowed:.0f} ms is allowed"
        return ""

    def take(self) -> tuple[list[Item], list[Item]]:
        """Wait for items, and take the next batch.

        Returns:
            The batch, and the items before it that have waited too long. Both are empty when the queue was closed and
            nothing is left.
        """
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            batch: list[Item] = []
            late: list[Item] = []
            rows, now = 0, time.monotonic()
            while self._waiting and (not batch or rows + self._waiting[0][1] <= self._batch_rows):
                item, count, since, until = self._waiting.popleft()
                self._rows_waiting -= count
                self._queue_seconds += now - since
                if self._max_wait and now > until:
                    late.append(item)
                else:
                    batch.append(item)
                    rows += count
            self._rows_at_work += rows
            self._refused += len(late)
            return batch, late

    def done(self, items: int, rows: int, begin: float) -> None:
        """Tell that a batch is done, from which the waiting time of those to come is estimated.

        Args:
            items: of the batch.
            rows: of the batch.
            begin: `time.monotonic()` when it was taken.
        """
        with self._changed:
            self._rows_at_work -= rows
            now = time.monotonic()
            self._items += items
            self._compute_seconds += items * (now - begin)
            if rows:
                # With several at work what counts is how fast they are together: the time since the last one was done.
                pace = (now - max(begin, self._last_done)) / rows
                self._seconds_per_row += (_MEMORY if self._last_done else 1.0) * (pace - self._seconds_per_row)
                self._last_done = now

    def totals(self) -> Totals:
        """What went through until now."""
        with self._changed:
            return Totals(self._items, self._refused, self._queue_seconds, self._compute_seconds, len(self._waiting))

    def close(self) -> None:
        """Take nothing more in. What waits is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
