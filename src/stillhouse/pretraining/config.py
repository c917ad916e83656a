"""Settings of `prepare_corpus` and `pretrain`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stillhouse.data.location import check_location
from stillhouse.errors import InputError, Problem
from stillhouse.models.checkpoints import made_problems
from stillhouse.models.distilbert import parse_layers
from stillhouse.models.references import parse_reference
from stillhouse.pretraining.vocabulary import parse_tokenizer, tokenizer_reference

__all__ = ["OBJECTIVES", "CorpusConfig", "PretrainConfig"]

OBJECTIVES = {
    "mlm": ("bert", "albert", "distilbert"),
    "mlm+nsp": ("bert", "albert"),
    "mlm+sop": ("bert", "albert"),
    "triple": ("distilbert", "albert"),
}
"""Each objective, and the families that have what it trains."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which running text to learn from, and how it becomes tokens."""

    corpus: str
    """Documents: a file or folder of text, JSONL or Parquet (path, `s3://`, `gs://`, `https://`), `hub://OWNER/NAME`,
    or `demo://reviews`. In text files, blank lines separate documents."""
    text_column: str = "text"
    """Column that holds the text, one document a row, where the corpus has columns."""
    tokenizer: str = "train://wordpiece?vocab_size=8192"
    """`train://wordpiece?vocab_size=N` or `train://unigram?vocab_size=N` trains one on the corpus; a
    folder with a tokenizer.json or a checkpoint (PATH, `hub://OWNER/NAME`, `minilm://`) gives its own."""
    max_documents: int = 0
    """Read so many documents at most; 0: all."""
    validation_fraction: float = 0.02
    """Share of the documents that is held out, between 0 and 1; a document's text and the seed decide."""
    seed: int = 42
    """Which documents are held out."""

    def problems(self) -> list[Problem]:
        """Everything wrong with the settings, without reading any source."""
        found = []
        if not self.corpus.strip():
            found.append(Problem("corpus", "is empty.", "Give a file or folder of text, JSONL or Parquet."))
        else:
            found += check_location("corpus", self.corpus)
        if not self.text_column.strip():
            found.append(Problem("text_column", "is empty.", "Give the name of a column of the corpus."))
        try:
            if parse_tokenizer(self.tokenizer) is None:
                tokenizer_reference(self.tokenizer)
        except InputError as error:
            found += error.problems
        if self.max_documents < 0:
            found.append(Problem("max_documents", f"is {self.max_documents}.", "Give 0 (all) or more."))
        if not (math.isfinite(self.validation_fraction) and 0 < self.validation_fraction < 1):
            found.append(
                Problem("validation_fraction", f"is {self.validation_fraction}.", "Give a number between 0 and 1.")
            )
        return found + _seed_problems(self.seed)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of `pretrain`."""

    name: str = "pretrained"
    """What the model is called in its manifest."""
    model: str
    """What is trained: `scratch://FAMILY?…` for random weights, a checkpoint to go on with, `teacher://` for a
    DistilBERT made of the teacher's layers, or `teacher://albert?embedding_size=E&layers=N&layer_sharing=…` for an
    ALBERT factorised from it; see `stillhouse.models.references`."""
    objective: str = "mlm+nsp"
    """`mlm`; `mlm+nsp`, as BERT is pretrained; `mlm+sop`, as ALBERT is; or `triple`, as DistilBERT is, from a
    teacher."""
    teacher: str = ""
    """The checkpoint that `triple` learns from; its tokenizer must be the corpus's."""
    layers: str = ""
    """Layers of the teacher that the student follows, counted from 1, such as `2,4,6`, and is made of where the
    model is `teacher://`; empty takes every second one, or evenly spaced ones for a student that has its own."""
    sequence_length: int = 128
    """Tokens of a sequence, special ones included; sequences are packed to it."""
    whole_word_masking: bool = False
    """Whether the pieces of a word are masked together."""
    mask_ngrams: int = 1
    """Whole words that are masked together at most, fewer of them more often; ALBERT masks up to 3."""
    mask_probability: float = 0.15
    """Share of the tokens that are to be predicted."""
    sentence_weight: float = 1.0
    """Weight of the sentence task's loss beside the masked-language loss, in `mlm+nsp` and `mlm+sop`."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 32
    """Sequences of a batch, for each device."""
    gradient_accumulation_steps: int = 1
    """Batches summed into one optimizer step."""
    optimizer: str = "adamw"
    """`adamw`, or `lamb`, for batches of thousands of sequences; ALBERT is pretrained with it."""
    learning_rate: float = 1e-4
    """Peak learning rate, after linear warm-up and before linear decay to zero."""
    warmup_ratio: float = 0.06
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    ce_weight: float = 5.0
    """Weight of the divergence from the teacher's softened predictions, in `triple`."""
    mlm_weight: float = 2.0
    """Weight of the masked-language loss, in `triple`."""
    cosine_weight: float = 1.0
    """Weight of one minus the cosine between matched hidden states, in `triple`."""
    temperature: float = 2.0
    """Divisor of both logits before the softmax, in `triple`."""
    head_steps: int = 200
    """Steps in which a teacher without a language-model head gets one, its other weights unchanged."""
    evaluations: int = 10
    """Evaluations on held-out documents, spread over the steps; a checkpoint is saved at each."""
    precision: str = "auto"
    """`auto` (bf16 where the GPU or the CPU has instructions for it, else fp32), `fp32` or `bf16`."""
    seed: int = 42
    """Seed of fresh weights, dropout, the order of documents, segments and masks."""
    checkpoint_dir: str = ""
    """Where to keep resumable checkpoints, a path or an fsspec URI; empty keeps none beyond the training."""
    code_version: str = ""
    """Version of the code that trains; checkpoints of another are not resumed."""

    def problems(self) -> list[Problem]:
        """Everything wrong with the settings, by their names; at most local folders are looked at."""
        whole, share = "a whole number from 1", "a number from 0 to below 1"
        checks = [
            ("objective", self.objective, self.objective in OBJECTIVES, ", ".join(OBJECTIVES)),
            ("sequence_length", self.sequence_length, 8 <= self.sequence_length <= 8192,
             "a whole number from 8 to 8192"),
            ("mask_ngrams", self.mask_ngrams, 1 <= self.mask_ngrams <= 16, "a whole number from 1 to 16"),
            ("mask_probability", self.mask_probability, 0 < self.mask_probability < 1, "a number between 0 and 1"),
            ("sentence_weight", self.sentence_weight, 0 < self.sentence_weight < math.inf, "a number above 0"),
            ("steps", self.steps, self.steps >= 1, whole),
            ("batch_size", self.batch_size, self.batch_size >= 1, whole),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps, self.gradient_accumulation_steps >= 1,
             whole),
            ("optimizer", self.optimizer, self.optimizer in ("adamw", "lamb"), "adamw or lamb"),
            ("learning_rate", self.learning_rate, 0 < self.learning_rate < 1, "a number between 0 and 1"),
            ("warmup_ratio", self.warmup_ratio, 0 <= self.warmup_ratio < 1, share),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < 1, share),
            ("evaluations", self.evaluations, self.evaluations >= 1, whole),
            ("precision", self.precision, self.precision in ("auto", "fp32", "bf16"), "auto, fp32 or bf16"),
        ]  # fmt: skip
        if self.objective == "triple":
            weights = {name: getattr(self, name) for name in ("ce_weight", "mlm_weight", "cosine_weight")}
            checks += [(name, value, value >= 0, "a number from 0") for name, value in weights.items()]
            checks += [
                ("ce_weight", self.ce_weight, any(value > 0 for value in weights.values()),
                 "at least one of ce_weight, mlm_weight and cosine_weight above 0"),
                ("temperature", self.temperature, 0.1 <= self.temperature <= 100, "a number from 0.1 to 100"),
                ("head_steps", self.head_steps, self.head_steps >= 1, whole),
            ]  # fmt: skip
        found = [
            Problem(name, f"{value!r} will not do.", f"Give {wanted}.") for name, value, ok, wanted in checks if not ok
        ]
        return found + self._reference_problems() + _seed_problems(self.seed)

    def _reference_problems(self) -> list[Problem]:
        found = []
        teaches = self.objective == "triple"
        try:
            reference = parse_reference(self.model, "model")
            if reference.kind == "teacher":
                found += made_problems(reference, "model")
            if reference.kind == "teacher" and not teaches:
                what = f"teacher:// makes a student, and the objective {self.objective!r} has no teacher."
                found.append(Problem("model", what, "Set objective to triple, or name another model."))
            families = OBJECTIVES.get(self.objective, ())
            if reference.kind == "scratch" and families and _family(reference.family) not in families:
                what = f"{self.model!r} cannot be trained on {self.objective!r}."
                found.append(Problem("model", what, f"Give a model of: {', '.join(families)}."))
        except InputError as error:
            found += error.problems
        if not teaches:
            return found
        try:
            if not self.teacher:
                found.append(Problem("teacher", "is empty, and triple needs one.", "Name a checkpoint of a BERT."))
            elif parse_reference(self.teacher, "teacher").kind not in ("path", "hub"):
                found.append(
                    Problem("teacher", f"{self.teacher!r} has learned nothing.", "Name a checkpoint of a BERT.")
                )
        except InputError as error:
            found += error.problems
        try:
            parse_layers(self.layers)
        except InputError as error:
            found += [Problem("layers", problem.what, problem.remedy) for problem in error.problems]
        return found


def _family(name: str) -> str:
    """The family of a `scratch://` name, which may be a paper's: `albert-base`."""
    return name.partition("-")[0]


def _seed_problems(seed: int) -> list[Problem]:
    return [] if 0 <= seed < 2**32 else [Problem("seed", f"is {seed}.", "Give an integer from 0 to 4294967295.")]
