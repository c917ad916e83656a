"""Static INT8: the ranges of activations are measured once, on calibration rows, rather than at each request.

The dynamic kind (`stillhouse.export.onnx.quantise_int8`) looks for the least and the largest activation before each
matrix product. The static kind has them as constants, which saves that pass; in return, a text unlike those it was
calibrated on is cut off at their range. The graph holds pairs of QuantizeLinear and DequantizeLinear, operators of the
ONNX standard, which ONNX Runtime fuses with the products between them into integer kernels when it loads the model.

Source: Jacob et al. 2018, arXiv:1712.05877, sections 2.1 and 3 (affine quantisation; ranges observed on sample inputs).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.export.onnx import forget_shapes, quiet_quantiser

if TYPE_CHECKING:
    from onnx import GraphProto
    from transformers import PreTrainedTokenizerFast

__all__ = ["calibration_batches", "evenly_spaced", "quantise_int8_static"]

_BATCH = 8


def evenly_spaced(texts: Sequence[str], count: int) -> list[str]:
    """`count` of the texts from all over the sequence, the same each time; all of them where there are no more."""
    count = min(count, len(texts))
    return [texts[index * len(texts) // count] for index in range(count)]


def calibration_batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> Iterator[dict[str, NDArray[np.int64]]]:
    """The encoder's inputs `input_ids` and `attention_mask` [b, s] for the texts, cut and padded as in training."""
    for start in range(0, len(texts), _BATCH):
        encoded = tokenizer(
            list(texts[start : start + _BATCH]), padding=True, truncation=True, max_length=max_length,
            return_tensors="np", return_token_type_ids=False,
        )  # fmt: skip
        yield {name: np.asarray(encoded[name], dtype=np.int64) for name in ("input_ids", "attention_mask")}


def quantise_int8_static(source: Path, target: Path, batches: Iterable[Mapping[str, NDArray[np.int64]]]) -> None:
    """Write the ONNX model at `source` with INT8 weights, and activations quantised in ranges observed on the batches.

    Only products with a constant matrix and look-ups in tables are quantised: what attention multiplies by each other,
    softmax and LayerNorm stay in floating point, as in the dynamic kind. A weight that layers share is quantised once.
    A matrix has a scale for each column, a table has one. The outputs of products are not quantised: that is faster as
    well as more exact.

    Args:
        source: as `stillhouse.export.onnx.export_onnx` writes it.
        target: where to write.
        batches: inputs by name, at least one.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    class Reader:
        """Gives the batches one by one, and then None."""

        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> Mapping[str, Any] | None:
            return next(self._left, None)

    graph = onnx.load(str(source), load_external_data=False).graph
    with quiet_quantiser():
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            nodes_to_exclude=_without_weights(graph),
            per_channel=True,  # as fast, and about as exact as the dynamic kind; with one scale a matrix it is not
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # see `quantise_int8`
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
    forget_shapes(target)


def _without_weights(graph: GraphProto) -> list[str]:
    """Names of the products and look-ups whose matrix or table is no constant."""
    constants = {tensor.name for tensor in graph.initializer}
    weight = {"MatMul": 1, "Gemm": 1, "Gather": 0}
    return [
        node.name for node in graph.node if node.op_type in weight and node.input[weight[node.op_type]] not in constants
    ]
