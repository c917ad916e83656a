"""The trainer of language models: `transformers.Trainer` with the losses of pretraining, and sequences without end.

As in fine-tuning, several processes take the very steps that one would take with their batches put together, dropout
aside; here every last sequence and mask is the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments, set_seed

from stillhouse.objectives import masked_language_loss, matched_cosine_loss, sentence_pair_loss, soft_target_loss
from stillhouse.pretraining.config import PretrainConfig
from stillhouse.pretraining.heads import LanguageModel
from stillhouse.pretraining.lamb import Lamb
from stillhouse.pretraining.measure import held_out_batches, summary, totals
from stillhouse.pretraining.shards import shard_paths
from stillhouse.pretraining.stream import Batches, Position, Recipe, Sequences
from stillhouse.pretraining.vocabulary import Vocabulary
from stillhouse.progress import Step
from stillhouse.training import ranks
from stillhouse.training.checkpoints import CheckpointStore
from stillhouse.training.hardware import limit_threads, uses_bf16, uses_cpu
from stillhouse.training.watch import ResumableTrainer, Watch

__all__ = ["LanguageLoss", "LanguageTrainer", "Objective", "TripleLoss", "train"]

_log = logging.getLogger(__name__)
_HELD_OUT = 1024
"""Held-out sequences of an evaluation, at most."""
_POSITION = "position.json"

Terms = dict[str, torch.Tensor]
"""Terms of a loss by name: each the mean over a micro-batch times its share, see `Batches`."""


class Objective:
    """What a model is trained on: the terms of its loss, and what each weighs."""

    weights: dict[str, float]

    def __init__(self, model: Any) -> None:
        self.model = LanguageModel(model)

    def terms(self, batch: dict[str, Any], through: Any) -> Terms:
        """The terms for a batch, through the model as it is wrapped."""
        raise NotImplementedError


class LanguageLoss(Objective):
    """The masked-language loss, and that of the sentence task where there is one, added up as in BERT and ALBERT.

    Args:
        model: with pretraining heads.
        sentence_weight: of the sentence task's loss, which is 1 in the papers; 0 where the sequences are no pairs.
        head_only: whether the encoder stays as it is.
    """

    def __init__(self, model: Any, *, sentence_weight: float = 0.0, head_only: bool = False) -> None:
        super().__init__(model)
        self.weights = {"mlm_loss": 1.0} | ({"sentence_loss": sentence_weight} if sentence_weight else {})
        self.model.train_only(encoder=not head_only, language=True, sentence=bool(sentence_weight))

    def terms(self, batch: dict[str, Any], through: Any) -> Terms:
        found = self.model(batch, through=through)
        terms = {"mlm_loss": batch["shares"]["masked"] * masked_language_loss(found.language, batch["targets"])}
        if "sentence_loss" in self.weights:
            assert found.sentence is not None
            terms["sentence_loss"] = sentence_pair_loss(found.sentence, batch["labels"])
        return terms


class TripleLoss(Objective):
    """The three terms that a DistilBERT learns from a teacher; those that weigh nothing are not computed.

    Args:
        model: the student.
        teacher: its language model.
        layers: for each layer of the student, the teacher's layer (counted from 1) that it follows.
        config: weights, temperature and precision.
    """

    def __init__(self, model: Any, teacher: Any, layers: Sequence[int], config: PretrainConfig) -> None:
        super().__init__(model)
        weights = {"ce_loss": config.ce_weight, "mlm_loss": config.mlm_weight, "cosine_loss": config.cosine_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.model.train_only(language=self.weights.keys() != {"cosine_loss"}, sentence=False)
        self._teacher = LanguageModel(teacher.eval().requires_grad_(False))
        self._layers = tuple(layers)
        self._temperature = config.temperature
        self._bf16 = uses_bf16(config.precision)

    def terms(self, batch: dict[str, Any], through: Any) -> Terms:
        cosine = "cosine_loss" in self.weights
        student = self.model(batch, states=cosine, through=through)
        masked, tokens = batch["shares"]["masked"], batch["shares"]["tokens"]
        terms = {}
        if "mlm_loss" in self.weights:
            terms["mlm_loss"] = masked * masked_language_loss(student.language, batch["targets"])
        if self.weights.keys() == {"mlm_loss"}:
            return terms
        device = student.language.device
        if self._teacher.model.device != device:
            self._teacher.model.to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
            teacher = self._teacher(batch, states=cosine)
        if "ce_loss" in self.weights:
            terms["ce_loss"] = masked * soft_target_loss(student.language, teacher.language, self._temperature)
        if cosine:
            assert student.states is not None and teacher.states is not None
            mask = batch["attention_mask"]
            terms["cosine_loss"] = tokens * matched_cosine_loss(student.states, teacher.states, self._layers, mask)
        return terms


class LanguageTrainer(ResumableTrainer):
    """Trains on an objective's terms, which it logs one by one, and evaluates on held-out documents."""

    control: Any

    def __init__(
        self, *args: Any, objective: Objective, batches: Batches, held_out: Callable[[], Any], **kwargs: Any
    ) -> None:
        super().__init__(*args, train_dataset=batches, eval_dataset=batches, **kwargs)
        self._objective = objective
        self._batches = batches
        self._held_out = held_out
        self._terms: Terms = {}
        self._logged = batches.begin
        self._position: tuple[int, ...] = tuple(batches.position)
        self._epoch = 0.0
        # The terms are means over the whole step's items already, but for the division by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        # As it is: it knows of the other processes, and of the steps that were taken before.
        # Its generator is its own: it draws a number that would shift the dropout of a training that is resumed.
        pin = self.args.dataloader_pin_memory
        return DataLoader(self._batches, batch_size=None, pin_memory=pin, generator=torch.Generator())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self._position, self._epoch = inputs["position"], inputs["epoch"]
        terms = self._objective.terms(inputs, model)
        for name, value in terms.items():
            before = self._terms.get(name, torch.zeros((), device=value.device))
            self._terms[name] = before + value.detach() / self.args.gradient_accumulation_steps
        return sum(self._objective.weights[name] * value for name, value in terms.items())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and len(self._objective.weights) > 1:
            steps = self.state.global_step - self._logged
            for name, value in self._terms.items():
                logs[name] = self.accelerator.reduce(value, "mean").item() / steps
        if "loss" in logs:
            self._terms, self._logged = {}, self.state.global_step
        # The Trainer counts from where a training was resumed, and knows of no passes over the corpus.
        self.state.epoch = self._epoch
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        sums = totals(self._objective.model, self._held_out(), self.args.device)
        sums = self.accelerator.reduce(sums.to(self.args.device), "sum").cpu()
        found = summary(sums, sentences="sentence_loss" in self._objective.weights)
        weight = self._objective.weights.get("sentence_loss", 0.0)
        found["loss"] = found["mlm_loss"] + weight * found.get("sentence_loss", 0.0)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            # Before all else: a checkpoint is whole once the trainer has written its last file.
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _POSITION).write_text(json.dumps(self._position))
        super()._save_checkpoint(model, trial)


def train(
    config: PretrainConfig,
    *,
    objective: Objective,
    recipe: Recipe,
    vocabulary: Vocabulary,
    corpus_dir: Path,
    store: CheckpointStore,
    steps: int,
    evaluations: int,
    learning_rate: float,
    step: Step | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Train the objective's model in place, from the store's latest checkpoint if there is one.

    Args:
        config: what is not given below.
        objective: what to train, and on which loss.
        recipe: how sequences are made.
        vocabulary: of the corpus's tokenizer.
        corpus_dir: the prepared corpus.
        store: where checkpoints are kept.
        steps: optimizer steps.
        evaluations: spread over the steps, one of them at the end; a checkpoint is saved at each.
        learning_rate: peak.
        step: told of the progress.

    Returns:
        The last evaluation's metrics, and the history of losses and evaluations by step.
    """
    interval = max(1, -(-steps // evaluations))
    on_gpu = torch.cuda.is_available()
    model = objective.model.model
    limit_threads(model.config.hidden_size)
    arguments = TrainingArguments(
        output_dir=str(store.folder),
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        metric_for_best_model="perplexity",
        greater_is_better=False,
        logging_steps=_logging_steps(interval),
        # Sequences go on where the checkpoint says; going through all before them would take hours.
        ignore_data_skip=True,
        bf16=uses_bf16(config.precision),
        seed=config.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        use_cpu=uses_cpu(config.precision),
        save_on_each_node=store.per_node,
        ddp_find_unused_parameters=False,
    )
    batches = Batches(
        Sequences(shard_paths(corpus_dir, "train"), recipe, vocabulary),
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        steps=steps,
        rank=ranks.rank(),
        processes=ranks.world_size(),
    )
    latest = store.latest()
    resume = ranks.from_main(latest.name if latest else "")
    if resume:
        _log.info("continuing from %s", store.folder / resume)
        batches.begin = int(resume.rpartition("-")[2])
        batches.position = Position(*json.loads((store.folder / resume / _POSITION).read_text()))
    place = {"rank": ranks.rank(), "processes": ranks.world_size()}
    trainer = LanguageTrainer(
        model=model,
        args=arguments,
        objective=objective,
        batches=batches,
        held_out=lambda: held_out_batches(corpus_dir, recipe, vocabulary, _HELD_OUT, **place),
        callbacks=[Watch(step, store)],
        optimizer_cls_and_kwargs=(Lamb, {"lr": learning_rate}) if config.optimizer == "lamb" else None,
    )
    # Dropout is to differ between processes. The trainer has just seeded all of them alike.
    set_seed(config.seed + ranks.rank())
    trainer.train(resume_from_checkpoint=str(store.folder / resume) if resume else None)
    model.requires_grad_(True)
    # A state that was read from a checkpoint has its entries' names in another order.
    history = [
        {"step": entry["step"], **dict(sorted(entry.items()))}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    last = next(entry for entry in reversed(history) if "eval_loss" in entry)
    metrics = {name.removeprefix("eval_"): float(value) for name, value in last.items() if name.startswith("eval_")}
    return metrics, history


def _logging_steps(interval: int) -> int:
    """About a fifth of the interval between checkpoints, which it divides: so no average spans an interruption."""
    steps = max(1, interval // 5)
    while interval % steps:
        steps -= 1
    return steps
