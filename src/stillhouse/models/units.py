"""What can be cut out of an encoder: its attention heads and the neurons of its feed-forward networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from stillhouse.errors import InputError, Problem
from stillhouse.models.bert_like import BERT_LIKE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PRUNABLE_FAMILIES", "Part", "cut_part", "distinct", "encoder_matrices", "encoder_parts", "sparsity"]


class _Names(NamedTuple):
    """What a family calls the parts of a transformer block."""

    attention: str
    """The module that knows the size of a head."""
    projections: tuple[str, ...]
    """Linear layers whose rows belong to heads: queries, keys and values."""
    attention_output: str
    """The linear layer whose columns belong to heads."""
    up: str
    """The linear layer whose rows are the FFN's neurons."""
    down: str
    """The linear layer whose columns are the FFN's neurons."""


_BERT = _Names(
    attention="attention.self",
    projections=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_output="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
)
_NAMES = {
    **dict.fromkeys(BERT_LIKE, _BERT),
    "distilbert": _Names(
        attention="attention",
        projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_output="attention.out_lin",
        up="ffn.lin1",
        down="ffn.lin2",
    ),
    "albert": _Names(
        attention="attention",
        projections=("attention.query", "attention.key", "attention.value"),
        attention_output="attention.dense",
        up="ffn",
        down="ffn_output",
    ),
}
PRUNABLE_FAMILIES = tuple(_NAMES)
"""Families whose heads and neurons can be pruned."""


@dataclass
class Part:
    """Linear layers that are cut together: the heads, or the neurons, of a block or of several tied ones."""

    units: int
    width: int
    """Rows (of `inputs`) and columns (of `outputs`) of each unit."""
    blocks: list[int] = field(default_factory=list)
    inputs: list[nn.Linear] = field(default_factory=list)
    outputs: list[nn.Linear] = field(default_factory=list)
    owners: list[nn.Module] = field(default_factory=list)
    """Attention modules that keep count of their heads; for neurons, none."""


def encoder_matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The weights [out, in] of attention and FFN by name, each once however many blocks share it.

    Raises:
        InputError: the model's family is not one of `PRUNABLE_FAMILIES`.
    """
    linears = [
        linear
        for kind in ("heads", "neurons")
        for part in encoder_parts(model, kind)
        for linear in part.inputs + part.outputs
    ]
    wanted = {id(linear.weight) for linear in linears}
    # named_parameters gives a shared one under its first name alone.
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}


def sparsity(model: PreTrainedModel) -> float:
    """Share of the encoder's matrices that is exactly zero, between 0 and 1."""
    matrices = encoder_matrices(model).values()
    return float(sum(int((m == 0).sum()) for m in matrices)) / sum(m.numel() for m in matrices)


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    family, base = model.config.model_type, model.base_model
    if family not in _NAMES:
        raise InputError(
            Problem("student", f"is of the family {family!r}, which cannot be pruned.",
                    f"Prune one of: {', '.join(_NAMES)}.")
        )  # fmt: skip
    if family == "albert":
        return [layer for group in base.encoder.albert_layer_groups for layer in group.albert_layers]
    return list(base.transformer.layer if family == "distilbert" else base.encoder.layer)


def encoder_parts(model: PreTrainedModel, kind: str) -> list[Part]:
    """The parts of one kind, `heads` or `neurons`, in the order of their first blocks."""
    found: dict[int, Part] = {}
    blocks = _blocks(model)
    names = _NAMES[model.config.model_type]
    for number, block in enumerate(blocks):
        if kind == "heads":
            attention: Any = block.get_submodule(names.attention)
            inputs, output = [block.get_submodule(name) for name in names.projections], names.attention_output
            width, owners = int(attention.attention_head_size), [attention]
        else:
            inputs, output, width, owners = [block.get_submodule(names.up)], names.down, 1, []
        last: Any = block.get_submodule(output)
        part = found.setdefault(id(last.weight), Part(last.in_features // width, width))
        part.blocks.append(number)
        part.inputs.extend(inputs)  # type: ignore[arg-type]
        part.outputs.append(last)
        part.owners.extend(owners)
    return list(found.values())


def cut_part(part: Part, units: Sequence[int]) -> None:
    """Keep these units alone."""
    # Tied weights stay tied: each is cut once, and the old one is kept alive here, lest its id be given again.
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def cut(parameter: Any, rows: torch.Tensor, dimension: int) -> nn.Parameter:
        if id(parameter) not in made:
            kept = parameter.detach().index_select(dimension, rows.to(parameter.device)).contiguous()
            made[id(parameter)] = (parameter, nn.Parameter(kept, requires_grad=parameter.requires_grad))
        return made[id(parameter)][1]

    index = torch.tensor(units)[:, None] * part.width + torch.arange(part.width)
    rows = index.flatten()
    for linear in distinct(part.inputs):
        linear.weight = cut(linear.weight, rows, 0)
        if linear.bias is not None:
            linear.bias = cut(linear.bias, rows, 0)
        linear.out_features = len(rows)
    for linear in distinct(part.outputs):
        linear.weight = cut(linear.weight, rows, 1)
        linear.in_features = len(rows)
    for owner in part.owners:
        for name, value in (("num_attention_heads", len(units)), ("n_heads", len(units)), ("all_head_size", len(rows))):
            if hasattr(owner, name):
                setattr(owner, name, value)


def distinct(linears: Sequence[nn.Linear]) -> list[nn.Linear]:
    return list({id(linear): linear for linear in linears}.values())
