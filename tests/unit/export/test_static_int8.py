"""Static INT8: ranges come from calibration rows, weights are quantised once, and pruned models export smaller."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_checkpoint import CONFIGS, WORDS, write_dataset, write_model

from stillhouse.artifacts import PackageManifest
from stillhouse.export import PackageConfig
from stillhouse.export.package import _parity, package_model
from stillhouse.export.static_int8 import calibration_batches, evenly_spaced, quantise_int8_static
from stillhouse.models import checkpoints
from stillhouse.serving.runtime import PackageRuntime


def a_shared_matrix(path: Path) -> Path:
    """Two products with one matrix, and one of activations with each other."""
    random = np.random.default_rng(0)
    weights = {
        "table": random.normal(size=(20, 8)).astype(np.float32),
        "shared": random.normal(size=(8, 8)).astype(np.float32),
        "last": np.array([-1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], name="look-up"),
        helper.make_node("MatMul", ["x", "shared"], ["y"], name="first"),
        helper.make_node("Neg", ["y"], ["z"], name="neg"),
        helper.make_node("MatMul", ["z", "shared"], ["u"], name="second"),
        helper.make_node("Transpose", ["u"], ["t"], perm=[0, 2, 1], name="transpose"),
        helper.make_node("MatMul", ["u", "t"], ["scores"], name="scores"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"], name="unsqueeze"),
        helper.make_node("Mul", ["scores", "column"], ["probabilities"], name="mul"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", "sequence", "sequence"])
    graph = helper.make_graph(
        nodes, "shared", inputs, [output], [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def batches(*ids: int) -> list[dict[str, np.ndarray]]:
    rows = np.array([ids], dtype=np.int64)
    return [{"input_ids": rows, "attention_mask": np.ones_like(rows)}]


def run(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probabilities"], inputs)[0])


def test_a_shared_matrix_is_quantised_once_and_activations_are_not(tmp_path: Path):
    full, small = a_shared_matrix(tmp_path / "fp32.onnx"), tmp_path / "int8.onnx"
    quantise_int8_static(full, small, batches(*range(20)))
    graph = onnx.load(str(small)).graph
    eight_bits = {
        t.name: tuple(t.dims) for t in graph.initializer if t.data_type in (TensorProto.INT8, TensorProto.UINT8)
    }
    assert sorted(dims for dims in eight_bits.values() if len(dims) == 2) == [(8, 8), (20, 8)]
    assert not [t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2]
    # Operators of the standard alone, so that any server can load it; and what it reads is what is quantised.
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    made = {name: node for node in graph.node for name in node.output}
    kinds = {
        node.name: [made[name].op_type if name in made else "" for name in node.input]
        for node in graph.node
        if node.op_type == "MatMul"
    }
    assert kinds["first"] == kinds["second"] == ["DequantizeLinear", "DequantizeLinear"]
    assert "DequantizeLinear" not in kinds["scores"]
    (inputs,) = batches(3, 1, 7)
    wanted = run(full, inputs)
    assert 0 < np.abs(run(small, inputs) - wanted).mean() < 0.03 * np.abs(wanted).mean()


def test_ranges_are_those_of_the_calibration_rows(tmp_path: Path):
    full = a_shared_matrix(tmp_path / "fp32.onnx")
    table = numpy_helper.to_array(next(t for t in onnx.load(str(full)).graph.initializer if t.name == "table"))
    order = np.abs(table).max(axis=1).argsort()
    errors = {}
    (inputs,) = batches(*order[-3:])
    for name, rows in (("all", range(20)), ("small ones", order[:3])):
        quantise_int8_static(full, tmp_path / "int8.onnx", batches(*rows))
        errors[name] = np.abs(run(tmp_path / "int8.onnx", inputs) - run(full, inputs)).mean()
    assert errors["small ones"] > 2 * errors["all"]


def test_calibration_rows_are_spread_over_the_split_and_encoded_as_in_training():
    texts = [f"{WORDS[index % 80]} {WORDS[index % 7]}" for index in range(100)]
    assert evenly_spaced(texts, 4) == [texts[0], texts[25], texts[50], texts[75]]
    assert evenly_spaced(texts, 1000) == texts
    tokenizer = checkpoints.train_tokenizer(texts, 200, 16)
    found = list(calibration_batches(["", " ".join(WORDS[:30]), *texts[:9]], tokenizer, 12))
    assert [batch["input_ids"].shape for batch in found] == [(8, 12), (3, found[1]["input_ids"].shape[1])]
    assert all(array.dtype == np.int64 for batch in found for array in batch.values())
    assert found[0]["attention_mask"].sum(axis=1)[:2].tolist() == [2, 12]


@pytest.mark.parametrize("rows", [0, -1, 10_001])
def test_a_number_of_calibration_rows_that_will_not_do_is_refused(rows: int):
    config = PackageConfig(served_name="x", precisions="fp32,int8-static", calibration_rows=rows)
    assert [problem.where for problem in config.problems()] == ["calibration_rows"]
    assert PackageConfig(served_name="x", precisions="fp32,int8-static,int8").problems() == []


def matrices(path: Path, *types: Any) -> list[tuple[int, ...]]:
    return sorted(
        tuple(t.dims) for t in onnx.load(str(path)).graph.initializer if len(t.dims) == 2 and t.data_type in types
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_packages_of_all_kinds_answer_alike_and_hold_each_weight_once(family: str, tmp_path: Path):
    dataset = write_dataset(tmp_path / "dataset")
    pruned = family == "distilbert"
    model = write_model(tmp_path / "model", family, pruned=pruned)
    config = PackageConfig(served_name="reviews", precisions="int8-static,fp32,int8", calibration_rows=32)
    manifest = package_model(config, model_dir=model, dataset_dir=dataset, output_dir=tmp_path / "packages")
    assert (manifest.precisions, manifest.refused) == (["fp32", "int8", "int8-static"], {})
    found = {}
    for precision in manifest.precisions:
        package = PackageManifest.load(tmp_path / "packages" / precision)
        package.verify(tmp_path / "packages" / precision)
        found[precision] = (package, tmp_path / "packages" / precision / "triton/reviews-encoder/1/model.onnx")
        answers = PackageRuntime(tmp_path / "packages" / precision).predict(["word1 word2 word3", "word9 word40"])
        assert np.allclose(answers.probabilities.sum(axis=1), 1, atol=1e-5)
        assert package.parity["tolerance"] == {"fp32": 1e-3}.get(precision, 0.05)
    parity = found["int8-static"][0].parity
    assert 1e-6 < parity["mean_difference"] < 0.04 and parity["agreement"] >= 0.9
    assert found["int8-static"][0].bytes < 0.5 * found["fp32"][0].bytes
    whole = matrices(found["fp32"][1], TensorProto.FLOAT)
    if pruned:
        # Two heads of 16 and 48 neurons, then one head and 40 neurons: smaller products, not zeros in large ones.
        assert [whole.count(shape) for shape in ((64, 32), (32, 64), (64, 48), (48, 64))] == [3, 1, 1, 1]
        assert [whole.count(shape) for shape in ((64, 16), (16, 64), (64, 40), (40, 64))] == [3, 1, 1, 1]
        assert not whole.count((64, 128)) + whole.count((128, 64))
    else:
        # Three layers apply one block: 4 square matrices and the pooler's, and the two of the FFN.
        assert [whole.count(shape) for shape in ((64, 64), (64, 128), (128, 64))] == [5, 1, 1]
    for precision in ("int8", "int8-static"):
        path = found[precision][1]
        # The dynamic quantiser stores the classifier's matrix the other way round.
        found_here = matrices(path, TensorProto.INT8, TensorProto.UINT8)
        assert sorted(map(sorted, found_here)) == sorted(map(sorted, whole))
        assert matrices(path, TensorProto.FLOAT) == []
    # The tolerance is that of the other INT8, and judges the mean.
    texts = ["word1 word2 word3", "word9 word40"]
    expected = PackageRuntime(tmp_path / "packages" / "fp32").predict(texts).probabilities
    strict = dataclasses.replace(config, int8_tolerance=1e-7)
    fault = _parity(strict, tmp_path / "packages" / "int8-static", "int8-static", texts, expected)[1]
    assert fault.startswith("mean difference from PyTorch") and fault.endswith("exceeds the tolerance 1e-07")
