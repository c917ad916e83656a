"""The trainer: `transformers.Trainer` with the project's losses, progress and checkpoints.

Everything else that training needs (the loop, gradient accumulation, bf16, data-parallel runs under torchrun, resuming)
is the Trainer's own. Several processes take the very steps that one would take with their batches put together, dropout
aside: rows come in the same order, and each term of the loss is the mean over the whole batch. Only the last batch of
an epoch differs: where its rows cannot be shared out evenly, some are taken twice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

from stillhouse.objectives import hidden_cosine_loss, word_dropout
from stillhouse.progress import Step
from stillhouse.tasks import Task
from stillhouse.training import ranks
from stillhouse.training.checkpoints import CheckpointStore
from stillhouse.training.config import DistillationSettings, TrainConfig
from stillhouse.training.hardware import limit_threads, uses_bf16, uses_cpu
from stillhouse.training.watch import ResumableTrainer, Watch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["Distillation", "TaskTrainer", "total_steps", "train"]

_log = logging.getLogger(__name__)


class Distillation:
    """A frozen teacher, the settings of learning from it, and which hidden states are matched.

    Args:
        teacher: eval-mode model whose tokenizer the student shares.
        settings: weights of the three terms, temperature and word dropout.
        teacher_layers: for each layer of the student, the teacher's layer (counted from 1) that it is to follow.
    """

    def __init__(self, teacher: PreTrainedModel, settings: DistillationSettings, teacher_layers: Sequence[int]) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.settings = settings
        self.teacher_layers = tuple(teacher_layers)

    def loss(self, task: Task, student: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the three terms, from the student's logits [b, c] and hidden states [b, s, h] per layer."""
        settings = self.settings
        total = torch.zeros((), device=student.logits.device)
        if settings.hard:
            total = total + settings.hard * task.loss(student.logits, labels)
        if settings.soft or settings.cosine:
            if self.teacher.device != student.logits.device:
                self.teacher.to(student.logits.device)
            with torch.no_grad():
                teacher = self.teacher(**inputs, output_hidden_states=bool(settings.cosine))
            if settings.soft:
                total = total + settings.soft * task.distillation_loss(
                    student.logits, teacher.logits, settings.temperature
                )
            if settings.cosine:
                # hidden_states[0] is the embedding output, hidden_states[i] the output of layer i.
                pairs = zip(student.hidden_states[1:], self.teacher_layers, strict=True)
                terms = [
                    hidden_cosine_loss(hidden, teacher.hidden_states[layer], inputs["attention_mask"])
                    for hidden, layer in pairs
                ]
                # A mean over tokens, of which other processes may have more or fewer in their part of the batch.
                weight = ranks.share(inputs["attention_mask"].sum().float())
                total = total + settings.cosine * weight * torch.stack(terms).mean()
        return total


class _GroupedSampler(LengthGroupedSampler):
    """Row numbers of an epoch, those of similar length together, in an order that seed and epoch alone decide.

    So all processes agree on it, whatever each has drawn for its dropout, and so does a training that is resumed.

    Args:
        batch_size: rows per optimizer step, of all processes together.
        lengths: tokens of each row.
        seed: of the shuffling.
        epoch: tells the number of the present epoch, from 0.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed((self._seed << 20) + self._epoch())
        return iter(super().__iter__())


class TaskTrainer(ResumableTrainer):
    """Trains on the task's loss, or on the distillation loss where a `Distillation` is given."""

    def __init__(self, *args: Any, task: Task, distillation: Distillation | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._task = task
        self._distillation = distillation
        # Each term is a mean over the micro-batch, so the Trainer must divide by the accumulation steps itself.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> _GroupedSampler:
        # Not from the argument, which lacks the columns that the model does not take.
        lengths = list(self.train_dataset["length"])
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        steps = math.ceil(len(lengths) / batch)
        return _GroupedSampler(batch, lengths, self.args.seed, lambda: self.state.global_step // steps)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        distillation = self._distillation if model.training else None
        if distillation and distillation.settings.word_dropout:
            inputs["attention_mask"] = word_dropout(inputs["attention_mask"], distillation.settings.word_dropout)
        outputs = model(**inputs, output_hidden_states=bool(distillation and distillation.settings.cosine))
        loss = (
            distillation.loss(self._task, outputs, inputs, labels)
            if distillation
            else self._task.loss(outputs.logits, labels)
        )
        return (loss, {"logits": outputs.logits}) if return_outputs else loss


def total_steps(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of a training on so many rows, unless it stops early."""
    return math.ceil(config.epochs * _steps_per_epoch(config, rows))


def _steps_per_epoch(config: TrainConfig, rows: int) -> int:
    return math.ceil(rows / (config.batch_size * config.gradient_accumulation_steps * ranks.world_size()))


def train(
    config: TrainConfig,
    *,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    train_rows: Dataset,
    validation_rows: Dataset,
    store: CheckpointStore,
    distillation: Distillation | None = None,
    step: Step | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    first_evaluation: int = 0,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Train `model` in place, from the store's latest checkpoint if there is one, and leave it at its best evaluation.

    Args:
        train_rows: encoded rows with `input_ids`, `labels` and `length`.
        validation_rows: the same.
        callbacks: told of the training's events, beside those that every training has.
        first_evaluation: the optimizer step before which nothing is evaluated, and so nothing can be the best.

    Returns:
        The best model's metrics on the validation rows, and the history of losses and evaluations by step.
    """
    from transformers import DataCollatorWithPadding

    steps_per_epoch = _steps_per_epoch(config, len(train_rows))
    interval = max(1, math.ceil(steps_per_epoch / config.evaluations_per_epoch))
    on_gpu = torch.cuda.is_available()
    limit_threads(getattr(model.config, "hidden_size", None))
    arguments = TrainingArguments(
        output_dir=str(store.folder),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        eval_strategy="steps",
        eval_steps=interval,
        eval_delay=first_evaluation,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=config.quality_metric,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, interval // 5),
        bf16=uses_bf16(config.precision),
        seed=config.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=True,
        label_names=["labels"],
        dataloader_pin_memory=on_gpu,
        use_cpu=uses_cpu(config.precision),
        save_on_each_node=store.per_node,
        # The families differ in what a loss reaches, the cosine term alone does not reach the head, and looking for
        # unused weights costs little beside a step.
        ddp_find_unused_parameters=True,
    )
    watching: list[TrainerCallback] = [Watch(step, store), *callbacks]
    if config.early_stopping_patience:
        watching.append(EarlyStoppingCallback(early_stopping_patience=config.early_stopping_patience))

    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits = torch.from_numpy(np.asarray(prediction.predictions))
        return task.metrics(task.probabilities(logits).numpy(), np.asarray(prediction.label_ids))

    trainer = TaskTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if on_gpu else None),
        compute_metrics=compute_metrics,
        callbacks=watching,
        task=task,
        distillation=distillation,
    )
    # Dropout is to differ between processes. The trainer has just seeded all of them alike.
    set_seed(config.seed + ranks.rank())
    latest = store.latest()
    resume = ranks.from_main(latest.name if latest else "")
    if resume:
        _log.info("continuing from %s", store.folder / resume)
    trainer.train(resume_from_checkpoint=str(store.folder / resume) if resume else None)
    metrics = trainer.evaluate()
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    return {k.removeprefix("eval_"): float(v) for k, v in metrics.items() if _is_quality(k)}, history


def _is_quality(name: str) -> bool:
    return not name.endswith(("_runtime", "_per_second", "epoch"))
