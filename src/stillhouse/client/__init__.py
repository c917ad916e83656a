"""Ask a served model, from Python, over gRPC.

    with Client("localhost:8001", "reviews") as client:
        for answer in client.predict(["A joy from start to end.", "Two hours I want back."]):
            print(answer.label, answer.probability, answer.release)

`AsyncClient` is the same with `await`. Both split lists of any length into requests that the model takes, send these
side by side, and try again where that is safe. Needs the extra `client` only.

    connection.py   address, TLS, keepalive, round robin: what a gRPC channel is made of
    retries.py      when to ask again, and when that would only add to an overload
    failures.py     the error for people behind a gRPC status
    results.py      typed results, by the task that the model's configuration names
    protocol.py     what is asked and how answers are read, without any input or output
    clients.py      the two clients, which carry it out
"""

from stillhouse.client.clients import AsyncClient, Client, predict_texts
from stillhouse.client.connection import Tls
from stillhouse.client.protocol import RawAnswer
from stillhouse.client.results import Classification
from stillhouse.errors import DeadlineExceeded, InputError, Overloaded, ServerUnavailable, ServingError

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "InputError",
    "Overloaded",
    "RawAnswer",
    "ServerUnavailable",
    "ServingError",
    "Tls",
    "predict_texts",
]
