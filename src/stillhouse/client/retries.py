"""When a request is sent again.

Inference changes nothing on the server, so a request may be sent twice. It is sent again only where the server was not
there, turned it away (UNAVAILABLE), or was leaving: a refused request is refused again, and after a deadline nobody
waits any more.
"""

from __future__ import annotations

import random
import threading
import time

import grpc  # type: ignore[import-untyped]

__all__ = ["Attempts", "RetryBudget", "is_leaving"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds, before jitter


def is_leaving(error: grpc.RpcError) -> bool:
    """Whether a server knows the model and serves it no more, as one does that is being stopped."""
    return error.code() is grpc.StatusCode.NOT_FOUND and "has no available versions" in (error.details() or "")


class RetryBudget:
    """Bounds the retries of one client to a share of its requests.

    Without it every client of an overloaded server sends each request several times, and it never recovers.

    Args:
        share: retries that each request adds to the budget.
        reserve: retries that the budget begins with, and holds at most.
    """

    def __init__(self, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share, self._reserve = share, reserve
        self._left = reserve
        self._lock = threading.Lock()

    def deposit(self) -> None:
        """Count a request."""
        with self._lock:
            self._left = min(self._reserve, self._left + self._share)

    def withdraw(self) -> bool:
        """Take one retry, if there is one."""
        with self._lock:
            allowed = self._left >= 1.0
            self._left -= allowed
        return allowed


class Attempts:
    """The deadline and the retries of one request.

    Args:
        timeout: seconds from now until nobody waits for the answer any more, retries and pauses included.
        retries: how often it may be sent again.
        budget: what all requests of the client share.
    """

    def __init__(self, timeout: float, retries: int, budget: RetryBudget) -> None:
        self._deadline = time.monotonic() + timeout
        self._retries, self._used = retries, 0
        self._budget = budget
        budget.deposit()

    def remaining(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._deadline - time.monotonic())

    def pause(self, error: grpc.RpcError) -> float | None:
        """Seconds to wait before the request is sent again after this error; None where it is not."""
        again = error.code() is grpc.StatusCode.UNAVAILABLE or is_leaving(error)
        if not again or self._used == self._retries:
            return None
        # Jitter, so that clients that failed together do not come back together.
        seconds: float = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._used) * random.uniform(0.5, 1.5)
        if seconds >= self.remaining() or not self._budget.withdraw():
            return None
        self._used += 1
        return seconds
