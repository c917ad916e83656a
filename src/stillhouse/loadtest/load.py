"""The load generator: prepared requests, sent by `grpc.aio` from one event loop.

It often shares its cores with the server that it measures, so it is kept cheap: each request is turned into bytes once,
before the clock runs, and sent as it is. On one core that is 0.2 ms of CPU a request, most of it inside gRPC;
tritonclient's aio client, which builds each request and reads its tensors anew, takes 1.2 to 1.3 times as much.
"""

from __future__ import annotations

import asyncio
import math
import struct
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain, cycle, islice
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2

from stillhouse.client import Tls
from stillhouse.errors import InputError, Problem, ServingError
from stillhouse.loadtest.result import LoadResult

__all__ = ["Watch", "prepare_requests", "run_load", "run_open_load"]

Watch = Callable[[float], None]
"""Called a few times a second with the seconds since the load began, warm-up included."""

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_CONNECT_SECONDS = 5.0
_PAUSE = 0.01
"""Seconds a caller of the closed loop waits after a failure, so that a server that is gone is not asked in a spin."""
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.lb_policy_name", "round_robin"),  # a name with several addresses has all of them loaded
    # A server that is back must not look gone for seconds, up to two minutes, as by gRPC's defaults.
    ("grpc.max_reconnect_backoff_ms", 250),
]


def run_load(
    url: str,
    model: str,
    texts: Sequence[str | bytes],
    *,
    concurrency: int,
    seconds: float,
    batch_size: int = 1,
    warmup: float = 1.0,
    timeout: float = 30.0,
    tls: Tls | None = None,
    watch: Watch | None = None,
) -> LoadResult:
    """Closed loop: `concurrency` callers, each of which asks again once it is answered.

    A caller whose request failed waits 10 ms before it goes on. Each begins one request at least after the warm-up,
    also where that of the warm-up outlasts the measured time.

    Args:
        url: `host:port` of the gRPC endpoint.
        model: name of the public model.
        texts: sent in turn, again from the first when they are used up.
        concurrency: requests under way at once.
        seconds: measured time.
        batch_size: texts in each request.
        warmup: seconds of the same load before, which are not measured.
        timeout: deadline of each request, in seconds.
        tls: to connect encrypted.
        watch: told how far it is.

    Raises:
        InputError: an argument is out of range, or the server knows no such model or refuses the first request.
        ServingError: no server answers there.
    """
    problems = _at_least(("concurrency", concurrency, 1), ("warmup", warmup, 0))
    requests = prepare_requests(
        model, texts, batch_size, problems + _positive(("seconds", seconds), ("timeout", timeout))
    )

    async def load() -> LoadResult:
        async with _connect(url, model, requests[0], timeout, tls) as infer:
            tally = _Tally(infer, timeout, start=time.perf_counter() + warmup, seconds=seconds)
            supply = cycle(requests)

            async def caller() -> None:
                measured = False
                while (now := time.perf_counter()) < tally.end or not measured:
                    measured = now >= tally.start
                    if not await tally.ask(next(supply), now):
                        await asyncio.sleep(_PAUSE)

            await tally.run((caller() for _ in range(concurrency)), warmup + seconds, watch)
            return tally.result(batch_size)

    return asyncio.run(load())


def run_open_load(
    url: str,
    model: str,
    texts: Sequence[str | bytes],
    *,
    rate: float,
    seconds: float,
    batch_size: int = 1,
    timeout: float = 30.0,
    tls: Tls | None = None,
    watch: Watch | None = None,
) -> LoadResult:
    """Open loop: requests at a constant rate, however long the answers take.

    A latency counts from when its request was due, not from when it was sent: a generator that fell behind would
    else hide the very delays that it is there to find. Clocks of event loops tick in milliseconds, so that up to 1 ms
    of each latency is the generator's own; `LoadResult.lag_p99` tells.

    Args:
        url: `host:port` of the gRPC endpoint.
        model: name of the public model.
        texts: sent in turn, again from the first when they are used up.
        rate: requests a second.
        seconds: measured time, from the first request due to the end of the last one's interval.
        batch_size: texts in each request.
        timeout: deadline of each request from when it is sent, in seconds.
        tls: to connect encrypted.
        watch: told how far it is.

    Raises:
        InputError: an argument is out of range, or the server knows no such model or refuses the first request.
        ServingError: no server answers there.
    """
    problems = _positive(("rate", rate), ("seconds", seconds), ("timeout", timeout))
    requests = prepare_requests(model, texts, batch_size, problems)

    async def load() -> LoadResult:
        async with _connect(url, model, requests[0], timeout, tls) as infer:
            tally = _Tally(infer, timeout, start=time.perf_counter(), seconds=seconds)

            async def arrivals() -> None:
                under_way: set[asyncio.Task[bool]] = set()
                for number, request in zip(range(max(1, round(rate * seconds))), cycle(requests), strict=False):
                    due = tally.start + number / rate
                    # Also where it is late, so that answers are taken in between.
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    tally.lags.append(time.perf_counter() - due)
                    task = asyncio.create_task(tally.ask(request, due))
                    under_way.add(task)  # the event loop itself would let go of it
                    task.add_done_callback(under_way.discard)
                await asyncio.gather(*under_way)

            await tally.run([arrivals()], seconds, watch)
            return tally.result(batch_size)

    return asyncio.run(load())


def prepare_requests(
    model: str, texts: Sequence[str | bytes], batch_size: int, problems: Sequence[Problem] = ()
) -> list[bytes]:
    """Serialised ModelInferRequests of `batch_size` texts each, in order; the last is filled up from the first texts.

    Raises:
        InputError: `problems`, and those with the texts and the batch size.
    """
    found = [*problems, *_at_least(("batch_size", batch_size, 1))]
    if not texts:
        found.append(Problem("texts", "there are none."))
    if found:
        raise InputError(found)
    encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
    endless = chain.from_iterable(cycle([encoded]))
    requests = []
    for _ in range(math.ceil(len(encoded) / batch_size)):
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="TEXT", datatype="BYTES", shape=[batch_size, 1])
        request.raw_input_contents.append(
            b"".join(struct.pack("<I", len(text)) + text for text in islice(endless, batch_size))
        )
        requests.append(request.SerializeToString())
    return requests


class _Tally:
    """Sends requests, and keeps what became of those of the measured time, `start` to `end` of `time.perf_counter`."""

    def __init__(self, infer: Any, timeout: float, *, start: float, seconds: float) -> None:
        self._infer, self._timeout = infer, timeout
        self.start, self.end, self._seconds = start, start + seconds, seconds
        self.latencies, self.failures, self.lags = array("d"), array("d"), array("d")
        self.errors: Counter[str] = Counter()
        self.releases: Counter[str] = Counter()
        self.in_time = 0
        self._cpu = 0.0

    async def ask(self, request: bytes, since: float) -> bool:
        """Send one request, whose latency counts from `since`, and say whether it was answered."""
        try:
            answer = await self._infer(request, timeout=self._timeout)
        except grpc.RpcError as error:
            if since >= self.start:
                self.errors[error.code().name] += 1
                self.failures.append(time.perf_counter() - since)
            return False
        now = time.perf_counter()
        self.in_time += self.start <= now < self.end
        if since >= self.start:
            self.latencies.append(now - since)
            self.releases[service_pb2.ModelInferResponse.FromString(answer).model_version] += 1
        return True

    async def run(
        self, parts: Iterator[Coroutine[Any, Any, None]] | list[Any], total: float, watch: Watch | None
    ) -> None:
        """Run the load to its end, the last answer included; `total` is its seconds with the warm-up."""
        clock = asyncio.create_task(self._watch(total, watch))
        try:
            await asyncio.gather(*parts)
            await clock
        finally:
            clock.cancel()

    async def _watch(self, total: float, watch: Watch | None) -> None:
        begin = self.end - total
        await asyncio.sleep(max(0.0, self.start - time.perf_counter()))
        cpu = time.process_time()
        while (now := time.perf_counter()) < self.end:
            if watch:
                watch(now - begin)
            await asyncio.sleep(min(0.2, self.end - now))
        self._cpu = time.process_time() - cpu
        if watch:
            watch(total)

    def result(self, batch_size: int) -> LoadResult:
        return LoadResult(
            seconds=self._seconds,
            requests=len(self.latencies) + len(self.failures),
            texts_per_second=self.in_time * batch_size / self._seconds,
            latencies=1000 * np.array(self.latencies, dtype=np.float64),
            errors=dict(self.errors),
            error_latencies=1000 * np.array(self.failures, dtype=np.float64),
            releases=dict(self.releases),
            lag_p99=1000 * float(np.percentile(self.lags, 99)) if self.lags else 0.0,
            cpu_cores=self._cpu / self._seconds,
        )


@asynccontextmanager
async def _connect(url: str, model: str, request: bytes, timeout: float, tls: Tls | None) -> AsyncIterator[Any]:
    """The call that takes serialised requests, connected, after one of them was let through or rejected for load.

    Raises:
        InputError: the model is unknown there, or the request is not one for it.
        ServingError: nobody answers.
    """
    options = list(_OPTIONS)
    if url.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]"):
        options.append(("grpc.enable_http_proxy", 0))  # http_proxy is not meant for this machine itself
    connect = (
        grpc.aio.insecure_channel if tls is None else partial(grpc.aio.secure_channel, credentials=tls.credentials())
    )
    async with connect(url, options=options) as channel:
        ready = asyncio.ensure_future(channel.channel_ready())
        await asyncio.wait([ready], timeout=_CONNECT_SECONDS)
        if not ready.done():
            # Were it cancelled, gRPC would report its end to an event loop that is closed by then.
            await channel.close()
            await asyncio.gather(ready, return_exceptions=True)
            raise ServingError(f"no server answers at {url} within {_CONNECT_SECONDS:g} s.")
        infer = channel.unary_unary(_METHOD)
        try:
            await infer(request, timeout=timeout)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is grpc.StatusCode.NOT_FOUND or "unknown model" in str(details):
                raise InputError(Problem("model", f"{url} serves no model {model!r} ({details}).")) from None
            if code is grpc.StatusCode.UNIMPLEMENTED:
                raise ServingError(f"what answers at {url} is no inference server ({details}).") from None
            if code is grpc.StatusCode.INVALID_ARGUMENT:
                raise InputError(Problem("texts", f"the model refuses the first request: {details}.")) from None
        yield infer


def _at_least(*limits: tuple[str, float, float]) -> list[Problem]:
    return [Problem(name, f"{value:g} is less than {least:g}.") for name, value, least in limits if not value >= least]


def _positive(*values: tuple[str, float]) -> list[Problem]:
    return [Problem(name, f"{value:g} is not above 0.") for name, value in values if not value > 0]
