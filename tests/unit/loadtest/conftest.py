from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent import futures

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Model(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers `behave(number)` for the request of that number, from 0; the load test's own first one included.

    `behave` returns the release to answer with, or a gRPC status to refuse with, and may sleep.
    """

    def __init__(self, behave: Callable[[int], str | grpc.StatusCode]) -> None:
        self.behave = behave
        self.requests: list[service_pb2.ModelInferRequest] = []
        self.arrivals: list[float] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def ModelInfer(self, request, context):
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self.arrivals.append(time.perf_counter())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            outcome = self.behave(number)
        finally:
            with self._lock:
                self.at_once -= 1
        if isinstance(outcome, grpc.StatusCode):
            context.abort(outcome, "as told")
        return service_pb2.ModelInferResponse(model_name=request.model_name, model_version=outcome)


@pytest.fixture
def serve():
    """Starts servers that behave as told: `url, model = serve(behave)`. `model.server` may be stopped."""
    running = []

    def start(behave, workers=32, port=0):
        model = Model(behave)
        model.server = server = grpc.server(futures.ThreadPoolExecutor(workers))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(model, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        running.append(server)
        return f"127.0.0.1:{port}", model

    yield start
    for server in running:
        server.stop(0)
