"""The two clients: plans carried out in threads, and in an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2_grpc

from stillhouse.client.connection import Connection, Tls
from stillhouse.client.protocol import Pause, Plan, Protocol, RawAnswer, Texts, encode_texts, in_order
from stillhouse.client.results import Result

__all__ = ["AsyncClient", "Client", "predict_texts"]

T = TypeVar("T")


class _Settings:
    """What both clients are made with, which `Client` tells."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout: float = 5.0,
        retries: int = 2,
        batch_size: int | None = None,
        concurrency: int = 4,
        tls: Tls | None = None,
        balance: bool = False,
        keepalive: float = 30.0,
    ) -> None:
        self._connection = Connection(url=url, tls=tls, balance=balance, keepalive=keepalive)
        self._concurrency = concurrency
        self._protocol = Protocol(
            self._connection,
            model,
            timeout=timeout,
            retries=retries,
            batch_size=batch_size,
            concurrency=concurrency,
        )
        self._channel: Any = None
        self._stub: Any = None
        self._begin()

    def _begin(self) -> None:
        """Open the channel, where that can be done already."""

    def _open(self, library: Any) -> None:
        self._channel = self._connection.open(library)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)


class Client(_Settings):
    """Asks a served model; threads may share one. It connects when it is first asked, and not before.

    Args:
        url: `host:port` of the gRPC endpoint.
        model: name of the public model.
        timeout: seconds for each request, its retries included; a list of many requests may take longer as a whole.
        retries: how often a request that the server did not take (UNAVAILABLE) is sent again, after growing pauses; 0
            for never. Retries of one client are bounded to a tenth of its requests, with ten in reserve.
        batch_size: texts in one request; None for as many as the model takes.
        concurrency: requests of one list under way at once.
        tls: encrypts the connection, and says who calls (mTLS); None for a connection in the clear.
        balance: spread requests over all addresses of the host name, as of a headless service.
        keepalive: seconds of silence after which a connection that owes an answer is tested.

    Raises:
        InputError: something is wrong with these values; all of it is told. From the methods: the model refuses a
            text, which is named as `texts[index]`, or there is no such model.
        ServerUnavailable: nobody answers, also not after the retries.
        Overloaded: the server turned the request away, also after the retries.
        DeadlineExceeded: `timeout` was over.
        ServingError: the base of the three above, and for what else goes wrong on the server.
    """

    def predict(self, texts: Texts) -> list[Result]:
        """Results of the model's task for any number of texts, in their order."""
        return self._predict(texts, typed=True)

    def predict_one(self, text: str | bytes) -> Result:
        """The result for one text."""
        return self.predict([text])[0]

    def predict_raw(self, inputs: Mapping[str, Any], outputs: Sequence[str] = (), *, request_id: str = "") -> RawAnswer:
        """The answer of any model to one request, which is sent as it is.

        Args:
            inputs: arrays by the model's input names, with the batch as their first axis; text as arrays of `str` or
                `bytes`.
            outputs: names of the outputs to ask for; without any, all of them.
            request_id: what the server sees as the request's id.
        """
        return self._run(self._protocol.infer(inputs, outputs, request_id))

    def close(self) -> None:
        """Close the connection; requests under way fail."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        self._open(grpc)

    def _predict(self, texts: Texts, *, typed: bool, request_id: str = "") -> list[Any]:
        rows = encode_texts(texts)
        blocks = self._run(self._protocol.split(rows)) if rows else []

        def ask(block: Sequence[int]) -> list[Any]:
            return self._run(self._protocol.ask(rows, block, typed=typed, request_id=request_id))

        if len(blocks) < 2 or self._concurrency == 1:
            return in_order(blocks, map(ask, blocks))
        with ThreadPoolExecutor(min(self._concurrency, len(blocks))) as pool:
            return in_order(blocks, pool.map(ask, blocks))  # the first failure calls off what has not begun

    def _run(self, plan: Plan[T]) -> T:
        answer, failure = None, None
        try:
            while True:
                step = plan.throw(failure) if failure else plan.send(answer)
                answer, failure = None, None
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    continue
                try:
                    answer = getattr(self._stub, step.method)(step.request, timeout=step.timeout)
                except grpc.RpcError as error:
                    failure = error
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class AsyncClient(_Settings):
    """As `Client`, with `await`: the same settings, methods and errors.

    It belongs to the event loop in which it is first used.
    """

    async def predict(self, texts: Texts) -> list[Result]:
        """Results of the model's task for any number of texts, in their order."""
        rows = encode_texts(texts)
        blocks = await self._run(self._protocol.split(rows)) if rows else []
        results: list[list[Result]] = [[] for _ in blocks]
        remaining = iter(range(len(blocks)))

        async def work() -> None:
            for index in remaining:
                results[index] = await self._run(self._protocol.ask(rows, blocks[index], typed=True))

        workers = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(blocks)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return in_order(blocks, results)

    async def predict_one(self, text: str | bytes) -> Result:
        """The result for one text."""
        return (await self.predict([text]))[0]

    async def predict_raw(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] = (), *, request_id: str = ""
    ) -> RawAnswer:
        """The answer of any model to one request, as `Client.predict_raw`."""
        return await self._run(self._protocol.infer(inputs, outputs, request_id))

    async def close(self) -> None:
        """Close the connection; requests under way fail."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, plan: Plan[T]) -> T:
        if self._stub is None:  # a channel of grpc.aio belongs to the event loop that it is made in
            self._open(grpc.aio)
        answer, failure = None, None
        try:
            while True:
                step = plan.throw(failure) if failure else plan.send(answer)
                answer, failure = None, None
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    continue
                try:
                    answer = await getattr(self._stub, step.method)(step.request, timeout=step.timeout)
                except grpc.RpcError as error:
                    failure = error
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def predict_texts(
    url: str, model: str, texts: Texts, *, timeout: float = 30.0, request_id: str = "", tls: Tls | None = None
) -> list[dict[str, Any]]:
    """Ask any served model that takes `TEXT`, whatever its task, once and without retries.

    Args:
        url: `host:port` of the gRPC endpoint.
        model: name of the public model.
        texts: sent in as many requests as the model's batch size asks for.
        timeout: seconds for each request.
        request_id: what the server sees as each request's id; probes of health bear one that is not logged.
        tls: to connect encrypted.

    Returns:
        For each text a dict of every output by its name, and `model_version`. An output with one element per row is
        that element, bytes are decoded, others are lists.

    Raises:
        InputError, ServingError: as for `Client`.
    """
    with Client(url, model, timeout=timeout, retries=0, tls=tls) as client:
        return client._predict(texts, typed=False, request_id=request_id)
