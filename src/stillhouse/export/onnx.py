"""From a PyTorch checkpoint to ONNX: export, fold, quantise.

The exported encoder takes `input_ids` and `attention_mask` (INT64 [batch, sequence], both dynamic) and returns
`probabilities` (FP32 [batch, labels]); the head's softmax is inside.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, Problem
from stillhouse.models.families import position_limit
from stillhouse.tasks import Task

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto
    from transformers import PreTrainedModel

__all__ = [
    "UNSUPPORTED_FAMILIES",
    "convert_fp16",
    "export_onnx",
    "fold_transposed_weights",
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
    with torch.no_grad(), warnings.catch_warnings():
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
    fold_transposed_weights(proto)
    _halve_last(proto.graph)
    _strip(proto)
    onnx.save(proto, str(path))


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


def fold_transposed_weights(proto: ModelProto) -> int:
    """Replace each transpose of a weight by the transposed weight, once per weight; return how many nodes went.

    The exporter keeps a weight that several layers share (ALBERT) as one initializer that is transposed at run time in
    every layer, so that no MatMul has a constant to quantise. Folded, one constant serves all layers. Equal weights are
    merged too.
    """
    from onnx import numpy_helper

    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    folded: dict[tuple[str, tuple[int, ...]], str] = {}
    renamed: dict[str, str] = {}
    removed = []
    for node in graph.node:
        if node.op_type != "Transpose" or node.input[0] not in weights:
            continue
        tensor = weights[node.input[0]]
        permutation = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), None)
        order = permutation if permutation is not None else tuple(reversed(range(len(tensor.dims))))
        key = (tensor.name, order)
        if key not in folded:
            folded[key] = f"{tensor.name}.transposed{''.join(map(str, order))}"
            array = numpy_helper.to_array(tensor).transpose(order)
            graph.initializer.append(numpy_helper.from_array(array.copy(), folded[key]))
        renamed[node.output[0]] = folded[key]
        removed.append(node)
    for node in removed:
        graph.node.remove(node)
    renamed.update(_equal_initializers(graph))
    assert not {output.name for output in graph.output} & renamed.keys(), "a weight is an output of the graph"
    used = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[index] = name
        used.update(node.input)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return len(removed)


def _halve_last(graph: GraphProto) -> None:
    """Write each GELU as `(x · (1 + erf(x / √2))) · ½`, where the exporter writes `x · (½ · (1 + erf(x / √2)))`.

    ONNX Runtime makes one operator of the first order, and leaves the second as five. Halving is exact, so both give
    the same numbers.
    """
    from onnx.numpy_helper import to_array

    halves = {tensor.name for tensor in graph.initializer if not tensor.dims and to_array(tensor) == 0.5}
    users = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    for erf in graph.node:
        if erf.op_type != "Erf":
            continue
        path = [erf]
        for kind in ("Add", "Mul", "Mul"):
            following = users[path[-1].output[0]]
            # What another node reads too must stay what it is.
            if len(following) != 1 or following[0].op_type != kind:
                break
            path.append(following[0])
        else:
            inner, outer = path[2:]
            half = next((index for index, name in enumerate(inner.input) if name in halves), None)
            if half is not None:
                factor = 1 - list(outer.input).index(inner.output[0])
                outer.input[factor], inner.input[half] = inner.input[half], outer.input[factor]


def _equal_initializers(graph: GraphProto) -> dict[str, str]:
    """Map each initializer that repeats an earlier one to that one.

    The exporter folds the transposes of small weights by itself, and then stores one copy for each layer.
    """
    from onnx.numpy_helper import to_array

    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    repeated = {}
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(to_array(tensor).tobytes()).digest())
        if key in first:
            repeated[tensor.name] = first[key]
        else:
            first[key] = tensor.name
    return repeated


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

    Embedding tables are quantised too, since they are most of a small model's bytes.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet_quantiser():
        quantize_dynamic(
            str(source),
            str(target),
            weight_type=QuantType.QInt8,
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
