"""A classifier of texts behind Triton's gRPC service, whose answers and failures a test knows."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

LABELS = ("bad", "fair", "good")


def label_of(text: bytes, labels: tuple[str, ...] = LABELS) -> str:
    return labels[len(text) % len(labels)]


class ServedTexts(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Labels a text by its length. What it does may be changed at any time."""

    def __init__(self, release: str = "7", max_batch_size: int = 4, max_text_bytes: int = 100) -> None:
        self.release = release
        self.labels: dict[str, tuple[str, ...]] = {release: LABELS}  # by release; those that are loaded
        self.max_batch_size = max_batch_size
        self.max_text_bytes = max_text_bytes
        self.task: str | None = "classification"
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        """What the next inferences fail with."""
        self.delay = 0.0
        self.requests: list[list[bytes]] = []
        """Texts of each inference that arrived, failed ones too."""
        self.ids: set[str] = set()
        self.configurations = 0
        self.busiest = 0
        """Largest number of inferences at once."""
        self._busy = 0
        self._lock = threading.Lock()

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self.configurations += 1
        version = request.version or self.release
        if request.name != "reviews" or version not in self.labels:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        response.config.max_batch_size = self.max_batch_size
        if self.task is not None:
            parameters = {
                "task": self.task,
                "label_names": json.dumps(self.labels[version]),
                "max_text_bytes": str(self.max_text_bytes),
            }
            for key, value in parameters.items():
                response.config.parameters[key].string_value = value
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:
        texts = deserialize_bytes_tensor(request.raw_input_contents[0]).tolist()
        with self._lock:
            self.requests.append(texts)
            self.ids.add(request.id)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            failure = self.failures.pop(0) if self.failures else None
        release = self.release
        time.sleep(self.delay)
        with self._lock:
            self._busy -= 1
        if failure:
            context.abort(*failure)
        if len(texts) > self.max_batch_size:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"batch-size must be <= {self.max_batch_size}")
        for text in texts:
            if len(text) > self.max_text_bytes or text == b"odd":
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the text {text[:9]!r} will not do")
        labels = self.labels[release]
        chosen = [labels.index(label_of(text, labels)) for text in texts]
        probabilities = np.full((len(texts), len(labels)), 0.1, dtype=np.float32)
        probabilities[np.arange(len(texts)), chosen] = 0.8
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=release)
        response.outputs.add(name="PROBABILITIES", datatype="FP32", shape=probabilities.shape)
        response.raw_output_contents.append(probabilities.tobytes())
        response.outputs.add(name="LABEL", datatype="BYTES", shape=[len(texts), 1])
        names = np.array([labels[index].encode() for index in chosen], dtype=np.object_)
        response.raw_output_contents.append(serialize_byte_tensor(names).item())
        return response
