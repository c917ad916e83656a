"""Load on a served model over gRPC, and how fast it answers.

    result = run_load("localhost:8001", "reviews", texts, concurrency=8, seconds=10)
    result.texts_per_second, result.p99, result.errors

Two kinds of load. In a *closed* loop (`run_load`) a fixed number of callers each wait for an answer before they ask
again: that is how much a server can do, and how long its callers wait. In an *open* loop (`run_open_load`) requests
come at a fixed rate whether or not the server keeps up, as those of the public do: that is what overload looks like.

One load at a time in a process: event loops of `grpc.aio` that run beside each other slow each other down.
"""

from __future__ import annotations

from stillhouse.loadtest.load import run_load, run_open_load
from stillhouse.loadtest.ramp import Step, bench_document, ramp
from stillhouse.loadtest.result import LoadResult, find_knee

__all__ = ["LoadResult", "Step", "bench_document", "find_knee", "ramp", "run_load", "run_open_load"]
