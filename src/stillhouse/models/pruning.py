"""Structured pruning: whole attention heads and FFN neurons are cut out, which leaves smaller matrices.

Which ones is decided by a first-order importance score. A gate of one is thought at each head and at each neuron; the
loss's gradient with respect to the gate says, to first order, how much the loss of a text would change without it.

Sources: Michel et al. 2019, arXiv:1905.10650, section 4.1 (heads: the expected absolute gradient of a mask variable,
normalised by layer with the l2 norm); Molchanov et al. 2017, arXiv:1611.06440, section 2.2 (units: the absolute product
of activation and gradient, averaged over examples, normalised the same way), and 2019, arXiv:1906.10771 (the same with
gates, for units of any kind).

What is left is more than a transformers config can say, so it stands in the config's field `stillhouse`:
`{"heads": [heads left in each block], "neurons": [neurons left in each block]}`. Blocks are those that have weights: an
ALBERT that shares all has one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillhouse.errors import InputError, Problem
from stillhouse.models.shape import set_shape
from stillhouse.models.units import Part, cut_part, distinct, encoder_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Importance", "Plan", "Scores", "importance", "plan", "prune", "shrink"]


@dataclass(frozen=True)
class Scores:
    """Importance of the u units (heads, or neurons) of one part of the encoder."""

    blocks: tuple[int, ...]
    """The blocks, from 0, that use it: several where they are tied."""
    values: torch.Tensor
    """[u], not negative, in the loss's unit."""


@dataclass(frozen=True)
class Importance:
    """How much the loss depends on each head and each neuron."""

    heads: tuple[Scores, ...]
    neurons: tuple[Scores, ...]


@dataclass(frozen=True)
class Plan:
    """Which units stay: for each block, their rising numbers, from 0."""

    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]


def importance(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Importance:
    """The mean over texts of the absolute gradient of the text's loss with respect to the gate of each unit.

    A text's gradient for a head is the inner product of the head's output, over all tokens, with the loss's gradient at
    that output; and so for a neuron with its activation. Where blocks share weights, a unit goes from all of them or
    from none, so they share a gate. Dropout is off, and the model is left as it was.

    Args:
        model: of a family in `units.PRUNABLE_FAMILIES`, with a head.
        batches: each `input_ids` and `attention_mask` [b, s], and `labels`, whose first dimension is b.
        loss: mean loss of logits against labels, a scalar; each text's share of it may depend on that text alone.

    Raises:
        InputError: the model's family cannot be pruned.
        ValueError: there is no batch.
    """
    parts = [*encoder_parts(model, "heads"), *encoder_parts(model, "neurons")]
    totals = [torch.zeros(part.units, dtype=torch.float64) for part in parts]
    rows = 0
    training = model.training
    model.eval()
    try:
        with _gated(parts) as gates:
            for batch in batches:
                inputs = {name: value.to(model.device) for name, value in batch.items()}
                labels = inputs.pop("labels")
                gates[:] = [torch.ones(len(labels), p.units, device=model.device, requires_grad=True) for p in parts]
                with torch.enable_grad():
                    value = loss(model(**inputs).logits, labels) * len(labels)
                for total, gradient in zip(totals, torch.autograd.grad(value, gates), strict=True):
                    total += gradient.abs().sum(dim=0).double().cpu()
                rows += len(labels)
    finally:
        model.train(training)
    if not rows:
        raise ValueError("importance takes at least one batch")
    scores = [Scores(tuple(part.blocks), total / rows) for part, total in zip(parts, totals, strict=True)]
    attentions = len(encoder_parts(model, "heads"))
    return Importance(tuple(scores[:attentions]), tuple(scores[attentions:]))


@contextmanager
def _gated(parts: Sequence[Part]) -> Iterator[list[torch.Tensor]]:
    """Multiply what enters each part's output by its gates [b, u], which the caller puts into the list."""
    gates: list[torch.Tensor] = []
    handles = []

    def gate(number: int, part: Part) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = arguments[0].unflatten(-1, (part.units, part.width)) * gates[number][:, None, :, None]
            return (hidden.flatten(-2), *arguments[1:])

        return hook

    try:
        for number, part in enumerate(parts):
            for linear in distinct(part.outputs):
                handles.append(linear.register_forward_pre_hook(gate(number, part)))
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def plan(found: Importance, *, heads: float = 0.0, neurons: float = 0.0) -> Plan:
    """Choose the least important units of the whole encoder, but never the last of a block.

    Scores are compared across blocks, each divided by its block's l2 norm: gradients differ in scale from layer to
    layer. A block's most important unit always stays, so that no block is cut off.

    Args:
        found: from `importance`.
        heads: share of all heads to prune, from 0 to below 1, rounded down to whole heads.
        neurons: the same for the FFNs' neurons.
    """
    return Plan(_kept(found.heads, heads), _kept(found.neurons, neurons))


def _kept(scores: Sequence[Scores], share: float) -> tuple[tuple[int, ...], ...]:
    total = sum(len(one.values) for one in scores)
    candidates = []
    for number, one in enumerate(scores):
        norm = float(one.values.norm()) or 1.0
        best = int(one.values.argmax())
        candidates += [(float(v) / norm, number, unit) for unit, v in enumerate(one.values) if unit != best]
    pruned = {(number, unit) for _, number, unit in sorted(candidates)[: int(share * total + 1e-9)]}
    kept = {
        block: tuple(unit for unit in range(len(one.values)) if (number, unit) not in pruned)
        for number, one in enumerate(scores)
        for block in one.blocks
    }
    return tuple(kept[block] for block in sorted(kept))


def prune(model: PreTrainedModel, chosen: Plan) -> None:
    """Cut everything out of `model` that the plan does not keep, and note the new sizes in its config.

    The outputs are those of the model whose pruned heads and neurons are multiplied by zero. A unit that was pruned is
    gone: gradients, optimizer state and earlier checkpoints of the model do not fit it any more.

    Raises:
        InputError: the model's family cannot be pruned.
        ValueError: the plan is one for another model.
    """
    work = []
    for kind, wanted in (("heads", chosen.heads), ("neurons", chosen.neurons)):
        parts = encoder_parts(model, kind)
        if sorted(block for part in parts for block in part.blocks) != list(range(len(wanted))):
            raise ValueError(f"the plan has {len(wanted)} blocks of {kind}, which the model has not")
        for part in parts:
            units = wanted[part.blocks[0]]
            rising = all(a < b for a, b in itertools.pairwise(units))
            if not units or not rising or units[0] < 0 or units[-1] >= part.units:
                raise ValueError(f"the plan keeps {kind} {units} of {part.units} in block {part.blocks[0]}")
            if any(wanted[block] != units for block in part.blocks):
                raise ValueError(f"the plan keeps different {kind} in blocks that are tied")
            work.append((part, units))
    for part, units in work:
        cut_part(part, units)
    sizes = {"heads": chosen.heads, "neurons": chosen.neurons}
    set_shape(model.config, **{kind: [len(units) for units in blocks] for kind, blocks in sizes.items()})


def shrink(model: PreTrainedModel, heads: Sequence[int] | None, neurons: Sequence[int] | None) -> None:
    """Give a freshly built model the sizes of a pruned one, whose weights are loaded into it next; idempotent.

    Args:
        model: of a prunable family, as its config builds it.
        heads: heads of each block; None leaves them.
        neurons: neurons of each block; None leaves them.

    Raises:
        InputError: the family cannot be pruned, or the sizes are none that such a model can have been pruned to.
    """
    problems = []
    work = []
    for kind, counts in (("heads", heads), ("neurons", neurons)):
        if counts is None:
            continue
        parts = encoder_parts(model, kind)
        blocks = sum(len(part.blocks) for part in parts)
        if len(counts) != blocks:
            what = f"stillhouse.{kind} has {len(counts)} numbers, and the model {blocks} blocks."
            problems.append(Problem("config.json", what, "Produce the checkpoint again."))
            continue
        for part in parts:
            wanted = counts[part.blocks[0]]
            whole = isinstance(wanted, int) and 1 <= wanted <= part.units
            if not whole or any(counts[block] != wanted for block in part.blocks):
                what = f"stillhouse.{kind} asks for {wanted!r} of {part.units} in block {part.blocks[0]}."
                problems.append(Problem("config.json", what, "Produce the checkpoint again."))
            elif wanted < part.units:
                work.append((part, tuple(range(wanted))))
    if problems:
        raise InputError(problems)
    for part, units in work:
        cut_part(part, units)
