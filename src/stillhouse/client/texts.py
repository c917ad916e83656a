"""A small client of the served model over gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from stillhouse.errors import InputError, Problem, ServingError

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

__all__ = ["predict_texts"]

_LARGEST_MESSAGE = 2**31 - 1  # bytes; the default of tritonclient, which its channel arguments replace


def predict_texts(
    url: str, model: str, texts: Sequence[str | bytes], *, timeout: float = 30.0, version: str = ""
) -> list[dict[str, Any]]:
    """Ask a served model about texts.

    Args:
        url: `host:port` of the gRPC endpoint.
        model: name of the public model.
        texts: sent in as many requests as the model's batch size asks for.
        timeout: seconds for each request.
        version: version to ask; empty for the one that the server chooses.

    Returns:
        For each text a dict of every output by its name, and `model_version`. An output with one element per row is
        that element, bytes are decoded, others are lists.

    Raises:
        InputError: the model refuses a text, or there is no such model; `where` is `text` or `model`.
        ServingError: the server cannot be reached, took too long, or failed.
    """
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    rows: list[dict[str, Any]] = []
    with _client(url) as client:
        try:
            config = client.get_model_config(model, version, client_timeout=timeout).config
            names = [output.name for output in config.output]
            size = max(1, config.max_batch_size)
            for begin in range(0, len(texts), size):
                block = [text if isinstance(text, bytes) else text.encode() for text in texts[begin : begin + size]]
                tensor = grpc.InferInput("TEXT", [len(block), 1], "BYTES")
                tensor.set_data_from_numpy(np.array(block, dtype=np.object_).reshape(-1, 1))
                result = client.infer(model, [tensor], version, client_timeout=timeout)
                columns = {name: result.as_numpy(name) for name in names}
                served = result.get_response().model_version
                for index in range(len(block)):
                    row = {name: _plain(column[index]) for name, column in columns.items()}
                    rows.append({**row, "model_version": served})
        except InferenceServerException as error:
            raise _explain(error, url, model, timeout) from None
    return rows


@contextmanager
def _client(url: str) -> Iterator[InferenceServerClient]:
    from tritonclient import grpc

    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", _LARGEST_MESSAGE),
        ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
        # Each client has a connection of its own, so that one that failed is never waited for.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if url.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]"):
        options.append(("grpc.enable_http_proxy", 0))  # http_proxy is not meant for this machine itself
    client = grpc.InferenceServerClient(url, channel_args=options)
    try:
        yield client
    finally:
        client.close()


def _plain(row: np.ndarray[Any, Any]) -> Any:
    """One row of an output as plain Python values."""
    values = [value.decode() if isinstance(value, bytes) else value for value in row.reshape(-1).tolist()]
    return values[0] if row.size == 1 else values


def _explain(error: Exception, url: str, model: str, timeout: float) -> InputError | ServingError:
    """The error for people behind one of tritonclient's."""
    status, message = str(getattr(error, "status", lambda: "")()), str(getattr(error, "message", lambda: error)())
    if "INVALID_ARGUMENT" in status:
        return InputError(Problem("text", f"the model refuses the request: {message}."))
    if "NOT_FOUND" in status or "unknown model" in message:
        return InputError(Problem("model", f"{url} serves no model {model!r} ({message})."))
    if "DEADLINE_EXCEEDED" in status:
        return ServingError(f"{url} did not answer within {timeout:g} s.")
    if "UNAVAILABLE" in status and "model" not in message.lower():
        return ServingError(f"no server answers at {url} ({message}).")
    return ServingError(f"{url} failed on model {model!r}: {message}")
