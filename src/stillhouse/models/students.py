"""Students that come as they are, rather than made of their teacher's parts: what they must have in common with it.

Losses that compare student and teacher token by token need both to read the same tokens, and comparing hidden states
needs both to have the same width. Depths may differ.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stillhouse.errors import InputError, Problem
from stillhouse.models.albert import evenly_spaced_layers
from stillhouse.models.bert_like import hidden_layers
from stillhouse.models.checkpoints import ROLE_FAMILIES, load_config, load_tokenizer
from stillhouse.models.distilbert import parse_layers
from stillhouse.models.references import Reference, parse_reference

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

__all__ = ["followed_layers", "student_problems", "tokenizer_difference", "tokenizer_problems"]

_log = logging.getLogger(__name__)
_SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "It's 3:45 pm -- Zoë's naïve CAFÉ charges $1,234.50!?",
    "  tabs\tand\nlines, ΑΒΓ, 東京, 🙂 and an antidisestablishmentarianistically long word ",
)
"""Texts on which tokenizers differ that treat case, accents, punctuation, spaces or unknown letters differently."""


def followed_layers(text: str, student: PretrainedConfig, teacher: PretrainedConfig) -> tuple[int, ...]:
    """For each of the student's layers the teacher's layer, counted from 1, whose hidden states it is to follow.

    Args:
        text: the `distill_layers` parameter; empty spaces them evenly.
        student: with any number of layers.
        teacher: with any number of layers.

    Returns:
        One number per layer of the student; none where the widths differ, so that no cosine can be taken.

    Raises:
        InputError: `text` does not name layers of the teacher, one for each of the student's.
    """
    count, depth = hidden_layers(student), hidden_layers(teacher)
    layers = parse_layers(text, depth) if text.strip() else evenly_spaced_layers(count, depth)
    if len(layers) != count:
        what = f"{text!r} names {len(layers)} layers, and the student has {count}."
        raise InputError(Problem("distill_layers", what, "Name one for each, or leave it empty to space them evenly."))
    if student.hidden_size != teacher.hidden_size:
        _log.warning(
            "hidden states are not compared: the student's have %d numbers, the teacher's %d",
            student.hidden_size,
            teacher.hidden_size,
        )
        return ()
    return layers


def tokenizer_difference(own: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> str:
    """What tells a tokenizer from another one; nothing where both give the same ids."""
    words, others = own.get_vocab(), other.get_vocab()
    if words != others:
        return f"has {len(set(words.items()) & set(others.items()))} of the {len(others)} tokens in common with it"
    if any(own(text)["input_ids"] != other(text)["input_ids"] for text in _SAMPLES):
        return "splits texts into other tokens"
    return ""


def tokenizer_problems(student: Reference, tokenizer: PreTrainedTokenizerFast) -> list[Problem]:
    """Why the checkpoint `student` cannot learn from a teacher with that tokenizer; nothing where it has the same one.

    Raises:
        InputError: it has no fast tokenizer.
    """
    what = tokenizer_difference(load_tokenizer(student, "student"), tokenizer)
    if not what and (rows := load_config(student, "student").vocab_size) < len(tokenizer):
        what = f"has {len(tokenizer)} tokens, and the model embeddings for {rows}"
    if not what:
        return []
    return [
        Problem("student", f"the tokenizer of {student.text!r} is not the teacher's: it {what}.",
                "Give a student that was pretrained with the teacher's tokenizer, or teacher://.")
    ]  # fmt: skip


def student_problems(student: str, teacher: str, layers: str, *, hidden_states_alone: bool) -> list[Problem]:
    """What keeps one checkpoint from learning from another, as far as it can be told before the teacher is trained.

    Args:
        student: the parameter `student`.
        teacher: the parameter `teacher`.
        layers: the parameter `distill_layers`.
        hidden_states_alone: whether the student is to learn from hidden states and nothing else.

    Raises:
        InputError: one of them cannot be loaded, or the layers do not fit.
    """
    references = parse_reference(student, "student"), parse_reference(teacher, "teacher")
    if references[0].kind == "teacher" or references[1].kind == "teacher":
        return []
    roles = ("student", "teacher")
    configs = [load_config(one, role) for one, role in zip(references, roles, strict=True)]
    if any(config.model_type not in ROLE_FAMILIES[role] for config, role in zip(configs, roles, strict=True)):
        return []  # `check_reference` says so
    found = []
    if not followed_layers(layers, *configs) and hidden_states_alone:
        found.append(
            Problem("student", f"{student!r} has hidden states of {configs[0].hidden_size} numbers and the teacher of "
                    f"{configs[1].hidden_size}, so that there is nothing to learn from.",
                    "Give distill_soft_weight or distill_hard_weight above 0.")
        )  # fmt: skip
    if references[0].kind == "scratch":
        return found  # it takes the teacher's tokenizer
    if references[1].kind == "scratch":
        what = f"{student!r} has a tokenizer of its own, and the teacher's is yet to be trained."
        return [*found, Problem("student", what, "Give a teacher with the student's tokenizer, or teacher://.")]
    return found + tokenizer_problems(references[0], load_tokenizer(references[1], "teacher"))
