"""ONNX export: the same answers as PyTorch for any batch and length, and INT8 that really is smaller."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig, XLNetConfig

from transformers import AlbertConfig, BertConfig, DistilBertConfig  # isort: skip

from stillhouse.errors import InputError
from stillhouse.export.onnx import convert_fp16, export_onnx, quantise_int8
from stillhouse.tasks import get_task

TASK = get_task("classification")
CONFIGS = {
    "bert": BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, num_labels=3
    ),
    "distilbert": DistilBertConfig(vocab_size=500, dim=64, n_layers=2, n_heads=2, hidden_dim=128, num_labels=3),
    "albert": AlbertConfig(
        vocab_size=500, embedding_size=16, hidden_size=64, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=128, num_labels=3,
    ),
}  # fmt: skip


def run(path: Path, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


def operators(path: Path) -> Counter[str]:
    """How many of each operator ONNX Runtime has left to do, after its own optimisation."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    options.log_severity_level = 3  # that such a file is for this machine alone
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_export_and_quantisation_keep_the_answers(family: str, tmp_path: Path):
    config: PretrainedConfig = CONFIGS[family]
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    full, half, small = (tmp_path / f"{name}.onnx" for name in ("fp32", "fp16", "int8"))
    export_onnx(model, TASK, full)
    convert_fp16(full, half)
    quantise_int8(full, small)
    for batch, length in ((1, 1), (1, 37), (5, 12)):
        ids = torch.randint(5, 500, (batch, length))
        mask = torch.ones_like(ids)
        mask[-1, max(1, length // 2) :] = 0
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask).logits.softmax(-1).numpy()
        assert np.abs(run(full, ids, mask) - wanted).max() < 1e-5
        assert 0 < np.abs(run(half, ids, mask) - wanted).max() < 5e-3
        assert np.abs(run(small, ids, mask) - wanted).max() < 0.05
        assert np.allclose(run(full, ids, mask).sum(axis=1), 1, atol=1e-5)
    graph = onnx.load(str(small)).graph
    counts = {kind: sum(node.op_type == kind for node in graph.node) for kind in ("MatMul", "MatMulInteger")}
    # What stays a float MatMul has no weight: two per layer, queries by keys and weights by values, at most.
    layers = getattr(config, "num_hidden_layers", None) or config.n_layers
    assert counts["MatMulInteger"] >= 6 * layers
    assert counts["MatMul"] <= 2 * layers
    assert small.stat().st_size < 0.45 * full.stat().st_size
    assert half.stat().st_size < 0.6 * full.stat().st_size
    # The feed-forward network of the last layer sees the token that is read, and no other.
    exported = onnx.shape_inference.infer_shapes(onnx.load(str(full))).graph
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in exported.value_info}
    inner = {tensor.name for tensor in exported.initializer if tuple(tensor.dims) == (64, 128)}
    seen = [axes[node.output[0]] for node in exported.node if node.op_type == "MatMul" and node.input[1] in inner]
    assert seen == [3] * (layers - 1) + [2]
    for path in (full, small):
        found = operators(path)
        # One operator for GELU, and none that is slower than what it stands for.
        assert sum(found[kind] for kind in ("Gelu", "BiasGelu", "FastGelu")) == layers
        assert not found["Erf"] and not found["SkipLayerNormalization"]
    if family == "albert":
        # Shared weights stay shared: each distinct matrix is stored once, however many layers use it.
        shapes = [tuple(t.dims) for t in graph.initializer if len(t.dims) == 2 and t.data_type == onnx.TensorProto.INT8]
        assert shapes.count((64, 128)) == 1


def test_xlnet_is_refused_by_name(tmp_path: Path):
    config = XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16)
    with pytest.raises(InputError, match="xlnet"):
        export_onnx(AutoModelForSequenceClassification.from_config(config), TASK, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
