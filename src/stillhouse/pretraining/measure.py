"""How well a pretrained model predicts what was held out: masked tokens, and the sentence task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stillhouse.errors import InputError, Problem

if TYPE_CHECKING:
    import torch

    from stillhouse.pretraining.heads import LanguageModel
    from stillhouse.pretraining.stream import Recipe
    from stillhouse.pretraining.vocabulary import Vocabulary

__all__ = [
    "SentenceAccuracy",
    "held_out_batches",
    "load_vocabulary",
    "perplexity",
    "sentence_accuracy",
    "summary",
    "totals",
]

_BATCH = 32
_LENGTH = 128
"""Tokens of a sequence where a checkpoint does not say what it was trained on."""


class SentenceAccuracy(NamedTuple):
    """How well a sentence head tells labels."""

    value: float
    """Share of the pairs whose label it tells, between 0 and 1."""
    pairs: int
    """That were asked, half of them of either label."""


def sentence_accuracy(
    model_dir: Path, corpus_dir: Path, *, task: Literal["nsp", "sop"], rows: int = 1024, seed: int = 0
) -> SentenceAccuracy:
    """How many labels the model's sentence head tells, of `rows` pairs of held-out segments, or of all there are.

    The head is used as it is, whichever of the two tasks it was trained for. As many tokens are masked as in training.

    Raises:
        InputError: the model has no sentence head, or the corpus too little.
    """
    sums = _measure(model_dir, corpus_dir, task, rows, seed)
    return SentenceAccuracy(summary(sums, sentences=True)["sentence_accuracy"], int(sums[5]))


def perplexity(model_dir: Path, corpus_dir: Path, *, rows: int = 1024, seed: int = 0) -> float:
    """Exponential of the mean cross-entropy at the masked tokens of `rows` held-out sequences, packed to full length.

    Raises:
        InputError: the model has no language-model head, or another vocabulary than the corpus.
    """
    return summary(_measure(model_dir, corpus_dir, "", rows, seed), sentences=False)["perplexity"]


def held_out_batches(
    corpus_dir: Path, recipe: Recipe, vocabulary: Vocabulary, rows: int, *, rank: int = 0, processes: int = 1
) -> Iterator[dict[str, Any]]:
    """This process's batches of the first `rows` held-out sequences; their masks are the same every time."""
    import numpy as np

    from stillhouse.pretraining.shards import shard_paths
    from stillhouse.pretraining.stream import Sequences, mask_block, to_tensors

    block = Sequences(shard_paths(corpus_dir, "validation"), recipe, vocabulary).first(rows)
    block = mask_block(block, recipe, vocabulary, np.random.default_rng([recipe.seed, 3]))
    order = np.argsort(block["lengths"], kind="stable")
    starts = range(0, len(order), _BATCH)
    for start in list(starts)[rank::processes]:
        yield to_tensors(block, order[start : start + _BATCH], types=bool(recipe.task))


def totals(model: LanguageModel, batches: Iterator[dict[str, Any]], device: torch.device) -> torch.Tensor:
    """Sums [6] over the batches: negative log-likelihood in nats, correct and all masked tokens; of the sentence task
    the same three. They add up over processes.
    """
    import torch
    from torch.nn import functional

    sums = torch.zeros(6, dtype=torch.float64)
    model.model.eval()
    with torch.no_grad():
        for batch in batches:
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            found = model(on_device)
            pairs = [(found.language, on_device["targets"])]
            if found.sentence is not None:
                pairs.append((found.sentence, on_device["labels"]))
            for index, (logits, targets) in enumerate(pairs):
                loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
                correct = (logits.argmax(dim=-1) == targets).sum()
                sums[3 * index] += loss.double().cpu()
                sums[3 * index + 1] += correct.cpu()
                sums[3 * index + 2] += len(targets)
    return sums


def summary(sums: torch.Tensor, *, sentences: bool) -> dict[str, float]:
    """Metrics of sums [6]: `perplexity`, `mlm_loss` in nats, `mlm_accuracy`; of pairs `sentence_accuracy` as well."""
    nll, correct, count, *rest = sums.tolist()
    # A model that has lost its way can be further off than a float can hold.
    metrics = {"mlm_loss": nll / count, "perplexity": math.exp(min(nll / count, 700)), "mlm_accuracy": correct / count}
    if sentences:
        metrics |= {"sentence_loss": rest[0] / rest[2], "sentence_accuracy": rest[1] / rest[2]}
    return metrics


def _measure(model_dir: Path, corpus_dir: Path, task: str, rows: int, seed: int) -> torch.Tensor:
    """The sums [6] of `totals`."""
    import torch

    from stillhouse.artifacts import ModelManifest
    from stillhouse.models import checkpoints
    from stillhouse.pretraining.heads import LanguageModel, head_parts
    from stillhouse.pretraining.models import weight_names
    from stillhouse.pretraining.stream import Recipe
    from stillhouse.training.hardware import limit_threads

    reference = checkpoints.reference_for(Path(model_dir))
    model = checkpoints.load_model(reference, "model", "AutoModelForPreTraining", {})
    parts = head_parts(model)
    if parts is None or (task and not parts.sentence):
        wanted = "sentence" if task else "language-model"
        raise InputError(
            Problem("model", f"a {model.config.model_type} has no {wanted} head.", "Give a pretrained BERT or ALBERT.")
        )
    if f"{parts.transform}.weight" not in weight_names(reference):
        raise InputError(
            Problem("model", "its language-model head was never trained.", "Give a pretrained checkpoint.")
        )
    vocabulary = load_vocabulary(corpus_dir)
    if len(vocabulary.special) > model.config.vocab_size:
        raise InputError(
            Problem("model", f"has {model.config.vocab_size} tokens, fewer than the corpus's tokenizer.",
                    "Give a corpus that was prepared with the model's tokenizer.")
        )  # fmt: skip
    length, masked = _LENGTH, Recipe.mask_probability
    if (Path(model_dir) / ModelManifest.filename()).is_file():
        manifest = ModelManifest.load(model_dir)
        length = manifest.max_length
        if task:  # of perplexities, only those at the same share can be compared
            masked = manifest.hyperparameters.get("mask_probability", masked)
            if manifest.hyperparameters.get("objective") in ("mlm", "triple"):
                raise InputError(
                    Problem("model", "its sentence head was never trained.",
                            "Give one that was pretrained with mlm+nsp or mlm+sop.")
                )  # fmt: skip
    recipe = Recipe(
        length=min(length, model.config.max_position_embeddings), task=task, mask_probability=masked, seed=seed
    )
    limit_threads(model.config.hidden_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    language_model = LanguageModel(model.to(device))
    batches = held_out_batches(Path(corpus_dir), recipe, vocabulary, rows)
    return totals(language_model, batches, device)


def load_vocabulary(corpus_dir: Path) -> Vocabulary:
    """That of a corpus's tokenizer."""
    from stillhouse.models import checkpoints
    from stillhouse.pretraining.vocabulary import Vocabulary

    reference = checkpoints.reference_for(Path(corpus_dir) / "tokenizer")
    return Vocabulary.of(checkpoints.load_tokenizer(reference, "tokenizer"))
