"""Rewrites of an exported graph that leave its answers as they are, and make it smaller or faster."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = ["fold_transposed_weights", "halve_last", "narrow_to_read_token"]

_BY_NUMBER = frozenset(("Add", "Div", "Erf", "Gelu", "Mul", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh"))
"""Operators that treat each number of their inputs by itself."""


def fold_transposed_weights(graph: GraphProto) -> int:
    """Replace each transpose of a weight by the transposed weight, once per weight; return how many nodes went.

    The exporter keeps a weight that several layers share (ALBERT) as one initializer that is transposed at run time in
    every layer, so that no MatMul has a constant to quantise. Folded, one constant serves all layers. Equal weights are
    merged too.
    """
    from onnx import numpy_helper

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


def halve_last(graph: GraphProto) -> None:
    """Write each GELU as `(x · (1 + erf(x / √2))) · ½`, where the exporter writes `x · (½ · (1 + erf(x / √2)))`.

    ONNX Runtime makes one operator of the first order, and leaves the second as five. Halving is exact, so both give
    the same numbers.
    """
    from onnx.numpy_helper import to_array

    halves = {tensor.name for tensor in graph.initializer if not tensor.dims and to_array(tensor) == 0.5}
    readers = _readers(graph)
    for erf in graph.node:
        if erf.op_type != "Erf":
            continue
        path = [erf]
        for kind in ("Add", "Mul", "Mul"):
            following = readers[path[-1].output[0]]
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


def narrow_to_read_token(graph: GraphProto) -> int:
    """Compute of the last layer what the head reads, and no more; return how many operators see one token now.

    Most classifiers read the state of one token, such as `[CLS]`, and drop all others. From the last attention on, no
    token's state depends on another's. So the selection, a `Gather` at a constant place of the sequence, moves up to
    there, before the attention's output projection and the feed-forward network: 9 of the 12 h² multiplications that
    a layer of width h, and 4 h inside, takes for each token.

    A graph that does not end like that stays as it is; so does one without the shapes that the exporter notes in
    `value_info`.
    """
    from onnx import helper

    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
    }
    sequence = shapes[graph.input[0].name][1]
    axes = {tensor.name: len(tensor.dims) for tensor in graph.initializer}

    def has_tokens(name: str) -> bool:
        shape = shapes.get(name, [])
        return len(shape) == 3 and shape[1] == sequence

    def axis(node: NodeProto, default: int) -> int:
        return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), default)

    def by_token(node: NodeProto) -> bool:
        first, *others = node.input
        if node.op_type == "MatMul":
            return has_tokens(first) and axes.get(others[0]) == 2
        if node.op_type == "LayerNormalization":
            return has_tokens(first) and axis(node, -1) == -1 and len(node.output) == 1
        return node.op_type in _BY_NUMBER and all(has_tokens(n) or axes.get(n, 2) < 2 for n in node.input)

    selections = [
        node
        for node in graph.node
        if node.op_type == "Gather"
        and axis(node, 0) == 1
        and has_tokens(node.input[0])
        and not axes.get(node.input[1], 1)
    ]
    if len(selections) != 1:
        return 0
    state, place = selections[0].input
    selected = selections[0].output[0]
    readers = _readers(graph)
    returned = {output.name for output in graph.output}
    narrowed: set[str] = set()
    for node in reversed(graph.node):
        output = node.output[0]
        # What something else reads too, as an attention or the caller does, is needed of all tokens.
        elsewhere = {reader.output[0] for reader in readers[output]} - {selected, *narrowed}
        if has_tokens(output) and by_token(node) and not elsewhere and output not in returned:
            narrowed.add(output)
    if state not in narrowed:
        return 0

    nodes = []
    read: dict[str, str] = {}
    for node in graph.node:
        if node.output[0] == selected:
            continue
        if node.output[0] in narrowed:
            for index, name in enumerate(node.input):
                if has_tokens(name) and name not in narrowed:
                    if name not in read:
                        read[name] = f"{name}.read"
                        nodes.append(helper.make_node("Gather", [name, place], [read[name]], read[name], axis=1))
                    node.input[index] = read[name]
            if node.output[0] == state:
                node.output[0] = selected
        nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)
    return len(narrowed)


def _readers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The operators that read each value."""
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


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
