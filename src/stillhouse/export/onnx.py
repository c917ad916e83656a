"""From a PyTorch checkpoint to ONNX: export, rewrite, quantise.

The exported encoder takes `input_ids` and `attention_mask` (INT64 [batch, sequence], both dynamic) and returns
`probabilities` (FP32 [batch, labels]); the head's softmax is inside.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, Problem
from stillhouse.export.rewrites import fold_transposed_weights, halve_last, narrow_to_read_token
from stillhouse.models.families import position_limit
from stillhouse.tasks import Task

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import PreTrainedModel

__all__ = [
    "UNSUPPORTED_FAMILIES",
    "convert_fp16",
    "export_onnx",
    "forget_shapes",
    "quantise_int8",
    "quiet_quantiser",
]

OPSET = 18
UNSUPPORTED_FAMILIES = {"xlnet": "its relative attention does not survive torch.onnx.export"}
"""Families that cannot be packaged, and why."""


def export_onnx(model: PreTrainedModel, task: Task, path: Path) -> None:
    """Write `model` with the task's probabilities as ONNX with dynamic batch and sequence.

    Raises:
        InputError: the model's family is known not to export.
    """
    import onnx
    import torch

    family = model.config.model_type
    if family in UNSUPPORTED_FAMILIES:
        raise InputError(
            Problem("checkpoint", f"{family} models cannot be packaged: {UNSUPPORTED_FAMILIES[family]}.",
                    "Choose another family for serving.")
        )  # fmt: skip

    class Encoder(torch.nn.Module):
        """Token ids in, the task's probabilities out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return task.probabilities(logits.float())

    # The example must be larger than one in both dimensions, or they are taken for constants.
    ids = torch.full((2, 16), int(model.config.pad_token_id or 0), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    batch, sequence = torch.export.Dim("batch", max=1 << 16), torch.export.Dim("sequence", max=_max_sequence(model))
    model.eval()
    with torch.no_grad(), _plain_attention(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Encoder().eval(),
            (ids, mask),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["probabilities"],
            dynamic_shapes={"input_ids": {0: batch, 1: sequence}, "attention_mask": {0: batch, 1: sequence}},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    fold_transposed_weights(proto.graph)
    halve_last(proto.graph)
    narrow_to_read_token(proto.graph)
    _strip(proto)
    onnx.save(proto, str(path))


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend by two products and a softmax, as the exporter writes them down.

    Of PyTorch's fused attention the exporter makes the same and more: keys are turned around twice, and what softmax
    gives is searched for rows that see nothing.
    """
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _strip(proto: ModelProto) -> None:
    """Drop what the exporter notes beside the graph: recorded shapes, which would contradict those of the quantised
    graph, and stack traces, which hold the paths of this machine and outweigh a small model's weights.
    """
    del proto.graph.value_info[:]
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _max_sequence(model: PreTrainedModel) -> int:
    return position_limit(model.config) or 1 << 16


@contextmanager
def quiet_quantiser() -> Iterator[None]:
    """Keep onnxruntime's quantiser from warning of pre-processing that the export has already done."""
    previous = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(previous)


def quantise_int8(source: Path, target: Path) -> None:
    """Write the ONNX model at `source` with its weights in INT8 and activations quantised dynamically, per tensor.

    Embedding tables are quantised too, since they are most of a small model's bytes. Weights take 7 of the 8 bits: x86
    processors without VNNI add two products in 16 bits, which full 8-bit weights make saturate, and whoever is served
    from such a processor would get other answers than were measured elsewhere.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet_quantiser():
        quantize_dynamic(
            str(source),
            str(target),
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            extra_options={"MatMulConstBOnly": True},
        )
    forget_shapes(target)


def forget_shapes(path: Path) -> None:
    """Drop the shapes of intermediate values from the ONNX model at `path`, which the quantiser has noted there.

    By them ONNX Runtime sees that it may fuse each residual sum with the LayerNorm behind it. On CPUs the fused
    operator sums number by number, and takes several times as long as the two: in INT8, a tenth of the model's time.
    """
    import onnx

    proto = onnx.load(str(path))
    del proto.graph.value_info[:]
    onnx.save(proto, str(path))


def convert_fp16(source: Path, target: Path) -> None:
    """Write the ONNX model at `source` with weights and arithmetic in 16-bit floats; inputs and outputs stay as before.

    What overflows there, and operators that have no such kernel, stay in FP32. Faster on GPUs; on a CPU it is not.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are clipped to the smallest 16-bit float
        proto = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True, disable_shape_infer=True)
    onnx.save(proto, str(target))
