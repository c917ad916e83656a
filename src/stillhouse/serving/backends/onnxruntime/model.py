"""Serves `backend: "onnxruntime"` models on a Triton that has a Python backend only.

A Python-based backend: Triton loads this file for each model whose configuration names the backend `onnxruntime`. It
takes the model repository that NVIDIA's native backend takes, and reads the parameters of it that are used here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports to its maker unless told not to before it is imported
import onnxruntime


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, or its container's share of time where that is less."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))  # `max` is no number: no limit
    return cores


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open a session on `model.onnx`, with `intra_op_thread_count` threads, or its share of the cores."""
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"]
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        options = onnxruntime.SessionOptions()
        instances = sum(group.get("count", 1) for group in config.get("instance_group", [{}]))
        threads = int(parameters.get("intra_op_thread_count", 0))
        options.intra_op_num_threads = threads or max(1, usable_cores() // max(1, instances))
        options.inter_op_num_threads = 1
        # Threads spin from one operator to the next, which is quickest, but no longer: the server and the front model
        # share the cores, and all that they do between two calls would take half as long again.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
        providers = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            providers.insert(0, "CUDAExecutionProvider")
        self._session = onnxruntime.InferenceSession(
            str(path / (config.get("default_model_filename") or "model.onnx")), options, providers=providers
        )
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run requests of equal shape together, as the native backend does, and split the outputs again."""
        import triton_python_backend_utils as pb_utils

        inputs = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            for request in requests
        ]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, tensors in enumerate(inputs):
            groups.setdefault(tuple(tensor.shape[1:] for tensor in tensors), []).append(index)
        responses: list[Any] = [None] * len(inputs)
        for members in groups.values():
            try:
                feed = {
                    name: np.concatenate([inputs[index][place] for index in members])
                    if len(members) > 1
                    else inputs[members[0]][place]
                    for place, name in enumerate(self._inputs)
                }
                outputs = self._session.run(self._outputs, feed)
            except Exception as error:
                for index in members:
                    responses[index] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
                continue
            begin = 0
            for index in members:
                end = begin + len(inputs[index][0])
                tensors = [
                    pb_utils.Tensor(name, np.ascontiguousarray(output[begin:end]))
                    for name, output in zip(self._outputs, outputs, strict=True)
                ]
                responses[index] = pb_utils.InferenceResponse(output_tensors=tensors)
                begin = end
        return responses
