"""Serves `backend: "onnxruntime"` models on a Triton that has a Python backend only.

A Python-based backend: Triton loads this file for each model whose configuration names the backend `onnxruntime`. It
takes the model repository that NVIDIA's native backend takes, and reads the parameters of it that are used here. What
opens the session, `encoder_session.py`, stands beside it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open a session on `model.onnx`, with `intra_op_thread_count` threads, or its share of the cores."""
        sys.path.insert(0, str(Path(__file__).parent))  # where this file and the one that it comes with stand
        encoder_session = importlib.import_module("encoder_session")
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        instances = sum(group.get("count", 1) for group in config.get("instance_group", [{}]))
        threads = int(parameters.get("intra_op_thread_count", 0))
        self._session = encoder_session.open_session(
            Path(args["model_repository"])
            / args["model_version"]
            / (config.get("default_model_filename") or "model.onnx"),
            threads=threads or max(1, encoder_session.usable_cores() // max(1, instances)),
            gpu=args["model_instance_kind"] == "GPU",
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
