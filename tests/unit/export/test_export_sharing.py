"""ALBERTs that share a part of their layers: exported, quantised, each shared matrix stored once."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from stillhouse.export.onnx import export_onnx, quantise_int8
from stillhouse.models.checkpoints import build_model, load_config, load_model, save_model
from stillhouse.models.references import parse_reference
from stillhouse.tasks import get_task

LAYERS = 3
TEXT = (
    f"scratch://albert?num_hidden_layers={LAYERS}&hidden_size=64&num_attention_heads=2&intermediate_size=128"
    "&vocab_size=500&embedding_size=16&max_position_embeddings=64"
)


def answers(path: Path, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


@pytest.mark.slow
@pytest.mark.parametrize(("sharing", "attentions", "ffns"), [("attention", 1, LAYERS), ("ffn", LAYERS, 1)])
def test_what_layers_share_is_exported_once(sharing: str, attentions: int, ffns: int, tmp_path: Path):
    torch.manual_seed(0)
    config = load_config(parse_reference(f"{TEXT}&layer_sharing={sharing}", "albert"), "albert", {"num_labels": 3})
    save_model(build_model(config, "AutoModelForSequenceClassification"), tmp_path / "model")
    reference = parse_reference(str(tmp_path / "model"), "albert")
    model = load_model(reference, "albert", "AutoModelForSequenceClassification", {})
    full, small = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(model, get_task("classification"), full)
    quantise_int8(full, small)
    for batch, length in ((1, 37), (5, 12)):
        ids = torch.randint(5, 500, (batch, length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask).logits.softmax(-1).numpy()
        assert np.abs(answers(full, ids, mask) - wanted).max() < 1e-5
        assert np.abs(answers(small, ids, mask) - wanted).max() < 0.05
    for path, kind in ((full, onnx.TensorProto.FLOAT), (small, onnx.TensorProto.INT8)):
        graph = onnx.load(str(path)).graph
        shapes = Counter(tuple(sorted(t.dims)) for t in graph.initializer if t.data_type == kind and len(t.dims) == 2)
        # Two matrices of each network; of the attention four, and the pooler is as large.
        assert shapes[64, 128] == 2 * ffns
        assert shapes[64, 64] == 4 * attentions + 1
    assert full.stat().st_size < 1.1 * (tmp_path / "model" / "model.safetensors").stat().st_size + 100_000
    assert small.stat().st_size < 0.6 * full.stat().st_size
