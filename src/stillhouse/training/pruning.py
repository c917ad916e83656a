"""Pruning a distilled student, and distilling it again to recover.

Heads and neurons are cut out first, all at once. What is left may then be made sparse while it recovers: the smallest
weights of each encoder matrix become zero, more and more of them on a cubic schedule, and stay so.

Source of the schedule: Zhu and Gupta 2017, arXiv:1710.01878, section 3, equation 1. Sparse matrices are as large and as
slow as dense ones where they are multiplied; they compress better, and kernels that skip zeros gain by them.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DataCollatorWithPadding, TrainerCallback

from stillhouse.models.checkpoints import parameter_count
from stillhouse.models.pruning import Plan, importance, plan, prune
from stillhouse.models.shape import apply_shape, own_shape
from stillhouse.models.units import encoder_matrices, sparsity
from stillhouse.progress import Step
from stillhouse.tasks import Task
from stillhouse.training import ranks
from stillhouse.training.checkpoints import CheckpointStore, open_store
from stillhouse.training.config import DistillConfig
from stillhouse.training.trainer import Distillation, total_steps, train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["MagnitudePruning", "Recovered", "cubic_sparsity", "magnitude_mask", "prune_and_recover"]

_log = logging.getLogger(__name__)
_IMPORTANCE_ROWS = 2048
"""Training rows that importance is measured on: the ranking hardly changes with more."""
_RAMP = 0.6
"""Share of the recovery over which sparsity grows; the rest makes good what the last zeros cost."""
_UPDATES = 100
"""Mask updates in that time, at most: a small step each, and each takes a selection of every matrix's weights."""


def cubic_sparsity(step: int, final: float, *, end: int, begin: int = 0, initial: float = 0.0) -> float:
    """Share of weights that are to be zero at `step`: final + (initial - final) * (1 - (step - begin)/(end - begin))^3.

    It rises quickly while much is redundant, and slowly towards the end. Before `begin` it is `initial`, and from `end`
    on `final`.

    Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1.
    """
    if step >= end:
        return final
    left = 1.0 - max(0, step - begin) / (end - begin)
    return final + (initial - final) * left**3


def magnitude_mask(weights: torch.Tensor, share: float) -> torch.Tensor:
    """Which weights stay [same shape, bool], where the given share of them, of the smallest magnitude, goes.

    The number that goes is rounded down; equal magnitudes at the border go together. Weights that are zero go first, so
    that masks of a rising share only ever grow.
    """
    count = int(share * weights.numel() + 1e-6)
    if not count:
        return torch.ones_like(weights, dtype=torch.bool)
    magnitudes = weights.detach().abs()
    return magnitudes > magnitudes.flatten().kthvalue(count).values


class MagnitudePruning(TrainerCallback):
    """Sets the smallest weights of each encoder matrix to zero while a model is trained, and keeps them there.

    The mask is the zeros themselves: they are in every checkpoint, so that a training that continues has it.

    Args:
        final: share of each matrix that is zero in the end.
        ramp_steps: optimizer steps over which that is reached.
    """

    def __init__(self, final: float, ramp_steps: int) -> None:
        self._final = final
        self._ramp = ramp_steps
        self._interval = max(1, ramp_steps // _UPDATES)
        self._matrices: list[torch.nn.Parameter] = []
        self._masks: list[torch.Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._matrices = list(encoder_matrices(model).values())
        self._masks = [matrix.detach() != 0 for matrix in self._matrices]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Before the checkpoint of this step, if there is one, is written.
        step = state.global_step
        if step == self._ramp or (step < self._ramp and step % self._interval == 0):
            share = cubic_sparsity(step, self._final, end=self._ramp)
            self._masks = [magnitude_mask(matrix, share) for matrix in self._matrices]
        with torch.no_grad():
            # The optimizer moves a zero too: its momentum is of before, and so is a gradient that flowed through it.
            for matrix, mask in zip(self._matrices, self._masks, strict=True):
                matrix.mul_(mask)


@dataclass(frozen=True)
class Recovered:
    """A pruned student that was distilled again."""

    model: PreTrainedModel
    metrics: dict[str, float]
    """On the validation rows."""
    history: list[dict[str, Any]]
    """Losses and evaluations of both trainings; steps count on."""
    facts: dict[str, Any]
    """For the manifest: what it was before, heads and neurons of each block, and its sparsity."""
    store: CheckpointStore
    """The recovery's checkpoints, to be finished once the model is written."""


def prune_and_recover(
    config: DistillConfig,
    *,
    key: str,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    train_rows: Dataset,
    validation_rows: Dataset,
    distillation: Distillation,
    metrics: dict[str, float],
    history: list[dict[str, Any]],
    step: Step | None = None,
) -> Recovered:
    """Prune a distilled student as `config.pruning` says, and distil it again, in all processes that train together.

    The recovery has checkpoints of its own. Once there is one, the sizes are taken from it rather than chosen anew, so
    that a run that was cut off continues.

    Args:
        config: the student's; learning rate and all else but the epochs hold for the recovery too.
        key: of the dense training's checkpoints.
        task: what the student predicts.
        model: the dense student; it stays as it is.
        tokenizer: the student's.
        train_rows: encoded rows with `input_ids`, `labels` and `length`.
        validation_rows: the same.
        distillation: the teacher, and how to learn from it.
        metrics: the dense student's, on the validation rows.
        history: of the dense training.
        step: told how far it is.

    Raises:
        InputError: the student's family cannot be pruned.
    """
    settings = config.pruning
    student = _without_wrapping(model)
    facts: dict[str, Any] = {"dense_parameters": parameter_count(model), "dense_metrics": metrics}
    with open_store(config.checkpoint_dir, f"{key}-recovery") as store:
        if settings.heads or settings.ffn:
            chosen = _earlier_plan(store) if ranks.is_main() else None
            if ranks.is_main() and chosen is None:
                found = importance(student, _batches(train_rows, tokenizer, config.batch_size), task.loss)
                chosen = plan(found, heads=settings.heads, neurons=settings.ffn)
            # Chosen once: scores differ in their last digits from machine to machine.
            chosen = ranks.from_main(chosen)
            assert chosen is not None
            prune(student, chosen)
            facts |= {kind: own_shape(student.config)[kind] for kind in ("heads", "neurons")}
            _log.info("pruned to heads %s and neurons %s", facts["heads"], facts["neurons"])
        recovery = dataclasses.replace(config, epochs=settings.epochs)
        callbacks, first_evaluation = [], 0
        if settings.sparsity:
            ramp = max(1, math.floor(_RAMP * total_steps(recovery, len(train_rows))))
            callbacks.append(MagnitudePruning(settings.sparsity, ramp))
            first_evaluation = ramp  # what is less sparse than was asked for is not to be the best
        recovered_metrics, recovered = train(
            recovery,
            task=task,
            model=student,
            tokenizer=tokenizer,
            train_rows=train_rows,
            validation_rows=validation_rows,
            store=store,
            distillation=distillation,
            step=step,
            callbacks=callbacks,
            first_evaluation=first_evaluation,
        )
        ranks.barrier()
    facts["sparsity"] = round(sparsity(student), 4)
    last = max((entry["step"] for entry in history), default=0)
    later = [{**entry, "step": entry["step"] + last, "phase": "recovery"} for entry in recovered]
    return Recovered(student, recovered_metrics, [*history, *later], facts, store)


def _without_wrapping(model: PreTrainedModel) -> PreTrainedModel:
    """A copy, without what a trainer has put around its forward pass and hooked to its parameters."""
    fresh = apply_shape(type(model)(copy.deepcopy(model.config)))
    fresh.load_state_dict(model.state_dict())
    return fresh.to(model.device)


def _earlier_plan(store: CheckpointStore) -> Plan | None:
    """A plan of the sizes that the store's newest checkpoint has; its weights will be loaded from there."""
    latest = store.latest()
    if latest is None:
        return None
    shape = json.loads((latest / "config.json").read_text(encoding="utf-8"))["stillhouse"]
    return Plan(*(tuple(tuple(range(count)) for count in shape[kind]) for kind in ("heads", "neurons")))


def _batches(rows: Dataset, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Evenly spaced rows in batches."""
    count = min(len(rows), _IMPORTANCE_ROWS)
    chosen = rows.select([index * len(rows) // count for index in range(count)]).remove_columns("length")
    collate = DataCollatorWithPadding(tokenizer)
    for start in range(0, count, batch_size):
        yield dict(collate([chosen[index] for index in range(start, min(start + batch_size, count))]))
