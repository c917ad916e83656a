"""Settings of the training steps."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.errors import InputError, Problem
from stillhouse.models.candidates import PARAMETER, ROLES
from stillhouse.models.distilbert import parse_layers
from stillhouse.models.references import parse_reference

__all__ = ["DistillConfig", "DistillationSettings", "FinetuneConfig", "PruneSettings", "TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training step needs."""

    name: str
    """The candidate's: its role (`teacher`, `student` or `albert`), or an extra candidate's own name."""
    epochs: float = 3.0
    """Passes over the training rows; early stopping may end training sooner."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW, after linear warm-up and before linear decay to zero."""
    batch_size: int = 32
    """Rows per optimizer step and device."""
    gradient_accumulation_steps: int = 1
    """Batches summed into one optimizer step."""
    max_length: int = 128
    """Tokens after which a text is cut."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    evaluations_per_epoch: int = 2
    """Evaluations on the validation split per epoch; a checkpoint is saved at each."""
    early_stopping_patience: int = 4
    """Evaluations without improvement after which training stops; 0 never stops early."""
    quality_metric: str = "accuracy"
    """The validation metric that picks the best checkpoint."""
    precision: str = "auto"
    """`auto` (bf16 where the GPU or the CPU has instructions for it, else fp32), `fp32` or `bf16`."""
    seed: int = 42
    """Seed of shuffling, dropout and fresh weights."""
    checkpoint_dir: str = ""
    """Where to keep resumable checkpoints, a path or an fsspec URI; empty keeps none beyond the training."""
    code_version: str = ""
    """Version of the code that trains; checkpoints of another are not resumed."""

    def problems(self) -> list[Problem]:
        """Everything wrong with the settings, by the name of the pipeline's parameter."""
        prefix = self.name if self.name in ROLES else "extra"
        checks = [
            (f"{prefix}_epochs", self.epochs, self.epochs > 0, "a number above 0"),
            (f"{prefix}_learning_rate", self.learning_rate, 0 < self.learning_rate < 1, "a number between 0 and 1"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "a whole number from 1"),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps, self.gradient_accumulation_steps >= 1,
             "a whole number from 1"),
            ("max_length", self.max_length, 8 <= self.max_length <= 8192, "a whole number from 8 to 8192"),
            ("warmup_ratio", self.warmup_ratio, 0 <= self.warmup_ratio < 1, "a number from 0 to below 1"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < 1, "a number from 0 to below 1"),
            ("evaluations_per_epoch", self.evaluations_per_epoch, self.evaluations_per_epoch >= 1,
             "a whole number from 1"),
            ("early_stopping_patience", self.early_stopping_patience, self.early_stopping_patience >= 0,
             "a whole number from 0"),
            ("precision", self.precision, self.precision in ("auto", "fp32", "bf16"), "auto, fp32 or bf16"),
        ]  # fmt: skip
        return [
            Problem(where, f"{value!r} will not do.", f"Give {wanted}.")
            for where, value, ok, wanted in checks
            if not ok
        ]


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """How a student learns from its teacher: the weights of the loss's three terms, its temperature, and word dropout.

    Source: Sanh et al. 2019, arXiv:1910.01108, section 2; here the hard-label term stands where pretraining has the
    masked-language term.
    """

    hard: float = 0.2
    """Weight of the cross-entropy with the labels."""
    soft: float = 0.8
    """Weight of the divergence from the teacher's softened probabilities."""
    cosine: float = 1.0
    """Weight of one minus the cosine between matched hidden states."""
    temperature: float = 2.0
    """Divisor of both logits before the softmax; 1 leaves them as they are."""
    word_dropout: float = 0.15
    """Share of the tokens hidden from teacher and student alike, drawn anew at each step."""

    def problems(self) -> list[Problem]:
        """Everything wrong with the settings, by the name of the pipeline's parameter."""
        found = [
            Problem(f"distill_{name}_weight", f"{value!r} will not do.", "Give a number from 0.")
            for name, value in (("hard", self.hard), ("soft", self.soft), ("cosine", self.cosine))
            if not value >= 0
        ]
        if not found and self.hard + self.soft + self.cosine == 0:
            found.append(Problem("distill_hard_weight", "all three weights are 0.", "Give at least one above 0."))
        if not 0.1 <= self.temperature <= 100:
            found.append(Problem("distill_temperature", f"{self.temperature!r} will not do.", "Give 0.1 to 100."))
        if not 0 <= self.word_dropout < 1:
            what = f"{self.word_dropout!r} will not do."
            found.append(Problem("distill_word_dropout", what, "Give a number from 0 to below 1."))
        return found


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """What of a distilled student is pruned away, and how long it then learns from its teacher again."""

    heads: float = 0.0
    """Share of the attention heads that are cut out, from 0 to below 1."""
    ffn: float = 0.0
    """Share of the feed-forward networks' neurons that are cut out, from 0 to below 1."""
    sparsity: float = 0.0
    """Share of what is left of each encoder matrix that becomes zero, the smallest weights first, from 0 to below 1."""
    epochs: float = 1.0
    """Passes over the training rows to recover."""

    @property
    def active(self) -> bool:
        """Whether anything is to be pruned."""
        return bool(self.heads or self.ffn or self.sparsity)

    def problems(self) -> list[Problem]:
        """Everything wrong with the settings, by the name of the pipeline's parameter."""
        shares = {
            "student_prune_heads": self.heads,
            "student_prune_ffn": self.ffn,
            "student_sparsity": self.sparsity,
        }
        found = [
            Problem(where, f"{value!r} will not do.", "Give a number from 0 to below 1.")
            for where, value in shares.items()
            if not 0 <= value < 1
        ]
        if not self.epochs > 0:
            found.append(Problem("prune_epochs", f"{self.epochs!r} will not do.", "Give a number above 0."))
        return found


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Settings of `finetune`."""

    checkpoint: str
    """Where the weights come from; see `stillhouse.models.references`."""
    embedding_size: int = 128
    """Size of the factorised embeddings, where the checkpoint is `teacher://`."""
    layers: int = 0
    """How many layers a text passes, where the checkpoint is `teacher://`; 0 takes the teacher's layers."""
    distillation: DistillationSettings = DistillationSettings()
    """The recovery by distillation, where the checkpoint is `teacher://`."""

    def problems(self) -> list[Problem]:
        found = super().problems()
        try:
            parse_reference(self.checkpoint, self.name if self.name in ROLES else PARAMETER)
        except InputError as error:
            found.extend(error.problems)
        return found + _albert_problems(self.embedding_size, self.layers)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Settings of `distill`."""

    student: str = "teacher://"
    """`teacher://` (a DistilBERT of the teacher's layers), `teacher://albert` (an ALBERT factorised from the teacher),
    or a checkpoint that shares the teacher's tokenizer; see `stillhouse.models.references`."""
    layers: str = ""
    """Layers of the teacher, counted from 1, such as `2,4,6`, that a DistilBERT of its layers copies (empty: every
    second one), or that another student's layers follow (empty: evenly spaced ones)."""
    albert_embedding_size: int = 128
    """Size of the factorised embeddings of `teacher://albert`."""
    albert_layers: int = 0
    """How many layers of `teacher://albert` a text passes; 0 takes the teacher's."""
    distillation: DistillationSettings = DistillationSettings()
    pruning: PruneSettings = PruneSettings()
    """What is pruned once the student is distilled; by default nothing."""

    def problems(self) -> list[Problem]:
        found = super().problems() + self.distillation.problems() + self.pruning.problems()
        for check in (lambda: parse_reference(self.student, "student"), lambda: parse_layers(self.layers)):
            try:
                check()
            except InputError as error:
                found.extend(error.problems)
        return found + _albert_problems(self.albert_embedding_size, self.albert_layers)


def _albert_problems(embedding_size: int, layers: int) -> list[Problem]:
    found = []
    if embedding_size < 1:
        found.append(Problem("albert_embedding_size", f"{embedding_size} will not do.", "Give 1 or more."))
    if layers < 0:
        found.append(Problem("albert_layers", f"{layers} will not do.", "Give 0 or more."))
    return found
