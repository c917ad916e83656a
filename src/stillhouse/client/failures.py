"""The error for people behind a gRPC status."""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]

from stillhouse.client.retries import is_leaving
from stillhouse.errors import (
    DeadlineExceeded,
    InputError,
    Overloaded,
    Problem,
    ServerUnavailable,
    ServingError,
)

__all__ = ["explain"]

# What the front model and Triton say of a request that found the queue full, or waited there too long. All of it comes
# as UNAVAILABLE.
_TURNED_AWAY = ("is overloaded", "waited too long", "exceeds maximum queue size", "request timeout expired")


def explain(error: grpc.RpcError, url: str, model: str, timeout: float, where: str = "inputs") -> Exception:
    """The error for people.

    Args:
        error: what a call of gRPC raised.
        url: the address that was asked.
        model: the model that was asked.
        timeout: seconds that the call was given.
        where: what of the caller's the request held.

    Returns:
        An InputError or a ServingError.
    """
    status, message = error.code(), (error.details() or error.code().name).strip()
    said = message.lower()
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return InputError(Problem(where, f"the model refuses the request: {message}."))
    if is_leaving(error):
        return ServerUnavailable(f"{url} serves {model!r} no more, or not yet ({message}).")
    if status is grpc.StatusCode.NOT_FOUND or "unknown model" in said:
        return InputError(Problem("model", f"{url} serves no model {model!r} ({message})."))
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{url} did not answer within {timeout:g} s.")
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED or any(words in said for words in _TURNED_AWAY):
        return Overloaded(f"{url} has more requests for {model!r} than it can answer in time ({message}).")
    if status is grpc.StatusCode.UNAVAILABLE:
        if "model" in said:
            return ServerUnavailable(f"{url} cannot answer for {model!r} now: {message}")
        return ServerUnavailable(f"no server answers at {url} ({message}).")
    return ServingError(f"{url} failed on model {model!r}: {message}")
