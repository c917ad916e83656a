"""The models that pretraining begins with: fresh, loaded, or a student made of a teacher's layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import ModelManifest, digest_json, sha256_file
from stillhouse.errors import InputError, Problem
from stillhouse.models import checkpoints
from stillhouse.models.albert import albert_from_bert, evenly_spaced_layers
from stillhouse.models.bert_like import BERT_LIKE
from stillhouse.models.distilbert import parse_layers, student_from_bert
from stillhouse.models.references import Reference, parse_reference
from stillhouse.models.students import tokenizer_difference
from stillhouse.pretraining.config import OBJECTIVES, PretrainConfig
from stillhouse.pretraining.heads import head_parts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "TEACHER_FAMILIES",
    "build_model",
    "factorised_student",
    "follow_layers",
    "identity",
    "load_teacher",
    "masked_student",
    "weight_names",
]

TEACHER_FAMILIES = BERT_LIKE
"""What `triple` learns from: models that a student can be made of."""
EMBEDDING_SIZE = 128
"""Of an ALBERT's embeddings where nothing else is asked for, as of all of the paper's (Lan et al. 2019, table 1)."""
_AUTO_CLASS = "AutoModelForPreTraining"
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The model that `config.model` names, with its pretraining heads: random weights, or a checkpoint's.

    An ALBERT is trained without dropout (Lan et al. 2019, arXiv:1909.11942, section 4.8).

    Raises:
        InputError: it cannot be had, is of a family that the objective does not train, or has another vocabulary.
    """
    reference = parse_reference(config.model, "model")
    family = checkpoints.load_config(reference, "model").model_type
    if family not in OBJECTIVES[config.objective]:
        known = ", ".join(OBJECTIVES[config.objective])
        raise InputError(
            Problem("model", f"{config.model!r} is of the family {family!r}, which is not trained on "
                    f"{config.objective!r}.", f"Give a model of: {known}.")
        )  # fmt: skip
    head: dict[str, Any] = dict(_NO_DROPOUT) if family == "albert" else {}
    if reference.kind == "scratch":
        model = checkpoints.model_from_scratch(reference, "model", _AUTO_CLASS, head, tokenizer)
    else:
        check_tokenizer(reference, "model", tokenizer)
        model = checkpoints.load_model(reference, "model", _AUTO_CLASS, head)
    if family == "albert":
        # Fine-tuning has dropout before its classifier, for which the config keeps its own value.
        model.sop_classifier.dropout.p = 0.0
    return model


def load_teacher(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, bool]:
    """The teacher with a language-model head, and whether the head is a fresh one, which has to be fitted first.

    Raises:
        InputError: it cannot be had, is of no family that a student is made of, or has another tokenizer.
    """
    reference = parse_reference(config.teacher, "teacher")
    family = checkpoints.load_config(reference, "teacher").model_type
    if family not in TEACHER_FAMILIES:
        raise InputError(
            Problem("teacher", f"{config.teacher!r} is of the family {family!r}.",
                    f"Give a checkpoint of: {', '.join(TEACHER_FAMILIES)}.")
        )  # fmt: skip
    check_tokenizer(reference, "teacher", tokenizer)
    teacher = checkpoints.load_model(reference, "teacher", "AutoModelForMaskedLM", dict(_NO_DROPOUT))
    parts = head_parts(teacher)
    assert parts is not None
    return teacher, f"{parts.transform}.weight" not in weight_names(reference)


def masked_student(teacher: Any, layers: tuple[int, ...], dropout: dict[str, Any]) -> PreTrainedModel:
    """A DistilBERT with a language-model head, made of these layers (counted from 1) of the teacher and of its head.

    Args:
        teacher: a masked-language model.
        layers: which layers to copy.
        dropout: fields of the teacher's own config, which is loaded without dropout.
    """
    for name, value in dropout.items():
        setattr(teacher.config, name, value)
    try:
        student: PreTrainedModel = student_from_bert(teacher, layers, "DistilBertForMaskedLM")
    finally:
        for name in dropout:
            setattr(teacher.config, name, 0.0)
    return student


def factorised_student(
    teacher: Any, reference: Reference, token_counts: torch.Tensor, seed: int
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """An ALBERT with pretraining heads, made of the teacher's embeddings, layers and language-model head.

    Args:
        teacher: a masked-language model.
        reference: `teacher://albert?…`.
        token_counts: [v], how often each token stands in the corpus.
        seed: of the factorisation's fit.

    Returns:
        The model, and what is worth noting of it.

    Raises:
        InputError: its embeddings would be larger than the teacher's.
    """
    given = reference.fields
    try:
        student, energy = albert_from_bert(
            teacher,
            embedding_size=given.get("embedding_size", EMBEDDING_SIZE),
            layers=given.get("layers", 0),
            layer_sharing=given.get("layer_sharing", "all"),
            token_counts=token_counts,
            seed=seed,
            student_class="AlbertForPreTraining",
        )
    except InputError as error:
        raise InputError([Problem("model", problem.what, problem.remedy) for problem in error.problems]) from None
    return student, {"embedding_energy": round(energy, 4), "layer_sharing": given.get("layer_sharing", "all")}


def follow_layers(config: PretrainConfig, teacher: Any, student_layers: int | None) -> tuple[int, ...]:
    """For each layer of the student, the teacher's layer (counted from 1) that it follows.

    Args:
        config: `layers` names them, or leaves them open.
        teacher: whose layers they are.
        student_layers: how many the student has; None where it is made of them.

    Raises:
        InputError: the teacher lacks one, or there are not as many as the student has.
    """
    count = teacher.config.num_hidden_layers
    if student_layers is not None and not config.layers.strip():
        return evenly_spaced_layers(student_layers, count)
    try:
        layers = parse_layers(config.layers, count)
    except InputError as error:
        raise InputError([Problem("layers", problem.what, problem.remedy) for problem in error.problems]) from None
    if student_layers is not None and len(layers) != student_layers:
        raise InputError(
            Problem("layers", f"{config.layers!r} names {len(layers)} layers, and the model has {student_layers}.",
                    "Name as many, or leave it empty for evenly spaced ones.")
        )  # fmt: skip
    return layers


def check_tokenizer(reference: Reference, parameter: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a checkpoint whose token ids do not mean what the corpus's do.

    Raises:
        InputError: its tokenizer is another one.
    """
    if what := tokenizer_difference(checkpoints.load_tokenizer(reference, parameter), tokenizer):
        raise InputError(
            Problem(parameter, f"{reference.text!r} has another tokenizer than the corpus: it {what}.",
                    f"Prepare the corpus with tokenizer={reference.text}.")
        )  # fmt: skip


def weight_names(reference: Reference) -> set[str]:
    """Names of the weights that a checkpoint (PATH or hub) holds; none are loaded."""
    import json

    from safetensors import safe_open

    if reference.kind == "path":
        files = [str(path) for path in sorted(Path(reference.location).glob("*.safetensors"))]
    else:
        from transformers.utils import cached_file

        try:
            files = [cached_file(reference.location, "model.safetensors", revision=reference.revision)]
        except OSError:  # in several files
            index = cached_file(reference.location, "model.safetensors.index.json", revision=reference.revision)
            return set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"])
    names: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as weights:
            names |= set(weights.keys())
    return names


def identity(text: str, parameter: str) -> str:
    """A digest of the checkpoint that a reference names, or of its name where it is not here."""
    reference = parse_reference(text, parameter)
    if reference.kind != "path":
        return digest_json(text)
    folder = Path(reference.location)
    if (folder / ModelManifest.filename()).is_file():
        return ModelManifest.digest(folder)
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return digest_json({path.name: sha256_file(path) for path in files})
