from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from served_model import ServedTexts
from tritonclient.grpc import service_pb2_grpc

from stillhouse.client import AsyncClient, Classification, Client

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves a model on a free port of loopback, over real gRPC, and returns its address."""
    servers: list[grpc.Server] = []

    def start(model: ServedTexts, *, host: str = "127.0.0.1", port: int = 0, credentials: Any = None) -> str:
        # Without reuse a port that is taken fails.
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(model, server)
        address = f"{host}:{port}"
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        server.start()
        servers.append(server)
        return f"{host}:{bound}"

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.fixture(params=["threads", "event loop"])
def predict(request: pytest.FixtureRequest) -> Callable[..., list[Classification]]:
    """Both clients as one function: `predict(url, texts, **settings)`."""

    def in_threads(url: str, texts: Any, model: str = "reviews", **settings: Any) -> list[Classification]:
        with Client(url, model, **settings) as client:
            return client.predict(texts)

    async def in_event_loop(url: str, texts: Any, model: str = "reviews", **settings: Any) -> list[Classification]:
        async with AsyncClient(url, model, **settings) as client:
            return await client.predict(texts)

    if request.param == "threads":
        return in_threads
    return lambda *arguments, **settings: asyncio.run(in_event_loop(*arguments, **settings))
