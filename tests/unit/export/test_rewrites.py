"""The selection of one token moves up the graph as far as tokens do not depend on one another, and no further."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stillhouse.export.rewrites import narrow_to_read_token

WIDTH, INNER = 4, 6
IDS = np.array([[3, 1, 4, 1], [5, 9, 2, 6]], dtype=np.int64)


def network(*end: onnx.NodeProto, outputs: tuple[str, ...] = ("answer",)) -> onnx.ModelProto:
    """Embeddings, what stands for an attention (each token takes the mean in), a feed-forward network, and an end."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in {
            "table": (10, WIDTH), "w0": (WIDTH, WIDTH), "w1": (WIDTH, INNER), "b1": (INNER,), "w2": (INNER, WIDTH),
            "scale": (WIDTH,), "bias": (WIDTH,), "row": (1, WIDTH),
        }.items()
    }  # fmt: skip
    weights |= {"first": np.array(0), "last": np.array(-1), "middle": np.array([1])}
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["embedded"]),
        node("ReduceMean", ["embedded", "middle"], ["mean"], keepdims=1),
        node("Add", ["embedded", "mean"], ["attended"]),
        node("MatMul", ["attended", "w0"], ["projected"]),
        node("Add", ["embedded", "projected"], ["sum"]),
        node("LayerNormalization", ["sum", "scale", "bias"], ["state"], axis=-1),
        node("MatMul", ["state", "w1"], ["wide"]),
        node("Add", ["wide", "b1"], ["inner"]),
        node("Tanh", ["inner"], ["active"]),
        node("Mul", ["inner", "active"], ["gated"]),
        node("MatMul", ["gated", "w2"], ["narrow"]),
        node("Add", ["narrow", "state"], ["final"]),
        *end,
    ]
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)


def answers(proto: onnx.ModelProto) -> list[np.ndarray]:
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": IDS})


def axes_of(proto: onnx.ModelProto) -> dict[str, int]:
    """How many axes each value has."""
    bare = onnx.ModelProto.FromString(proto.SerializeToString())
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
    return {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.value_info}


@pytest.mark.parametrize("place", ["first", "last"])
def test_all_behind_the_attention_sees_one_token(place: str):
    proto = network(helper.make_node("Gather", ["final", place], ["answer"], axis=1))
    wanted = answers(proto)
    assert narrow_to_read_token(proto.graph) == 9
    np.testing.assert_allclose(answers(proto)[0], wanted[0], rtol=1e-5)
    axes = axes_of(proto)
    assert {axes[name] for name in ("projected", "sum", "state", "wide", "inner", "active", "gated", "narrow")} == {2}
    assert {axes[name] for name in ("embedded", "mean", "attended")} == {3}


def test_what_something_else_reads_too_is_computed_for_all_tokens():
    end = (helper.make_node("Gather", ["final", "first"], ["answer"], axis=1),
           helper.make_node("ReduceMax", ["inner", "middle"], ["other"]))  # fmt: skip
    proto = network(*end, outputs=("answer", "other"))
    wanted = answers(proto)
    assert narrow_to_read_token(proto.graph) == 4
    for found, value in zip(answers(proto), wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5)
    axes = axes_of(proto)
    assert (axes["inner"], axes["state"], axes["active"], axes["gated"]) == (3, 3, 2, 2)


def test_what_the_caller_reads_is_computed_for_all_tokens():
    proto = network(
        helper.make_node("Gather", ["final", "first"], ["answer"], axis=1), outputs=("answer", "inner", "final")
    )
    before = proto.SerializeToString()
    assert narrow_to_read_token(proto.graph) == 0
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(
    "end",
    [
        [helper.make_node("ReduceMean", ["final", "middle"], ["answer"])],
        [helper.make_node("Gather", ["final", "first"], ["answer"], axis=2)],
        [helper.make_node("Gather", ["final", "middle"], ["answer"], axis=1)],
        # Two selections: neither is all that is read.
        [helper.make_node("Gather", ["final", "first"], ["a"], axis=1),
         helper.make_node("Gather", ["final", "last"], ["b"], axis=1),
         helper.make_node("Add", ["a", "b"], ["answer"])],
        # A weight with an axis for rows could stand for one row per token.
        [helper.make_node("Add", ["final", "row"], ["shifted"]),
         helper.make_node("Gather", ["shifted", "first"], ["answer"], axis=1)],
        [helper.make_node("Softmax", ["final"], ["over"], axis=1),
         helper.make_node("Gather", ["over", "first"], ["answer"], axis=1)],
        [helper.make_node("LayerNormalization", ["final", "scale"], ["over"], axis=1),
         helper.make_node("Gather", ["over", "first"], ["answer"], axis=1)],
    ],
)  # fmt: skip
def test_other_ends_stay_as_they_are(end: list[onnx.NodeProto]):
    proto = network(*end)
    before = proto.SerializeToString()
    assert narrow_to_read_token(proto.graph) == 0
    assert proto.SerializeToString() == before


def test_without_shapes_nothing_is_changed():
    proto = network(helper.make_node("Gather", ["final", "first"], ["answer"], axis=1))
    del proto.graph.value_info[:]
    assert narrow_to_read_token(proto.graph) == 0
