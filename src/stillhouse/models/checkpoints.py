"""Load checkpoints with a task's head, make them from scratch, and save them as model artifacts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, Problem
from stillhouse.models.families import adapt, classifies, position_limit
from stillhouse.models.references import Reference, parse_reference

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "check_reference",
    "load_config",
    "load_model",
    "load_tokenizer",
    "model_from_scratch",
    "parameter_count",
    "train_tokenizer",
]

_log = logging.getLogger(__name__)

ROLE_FAMILIES = {"teacher": ("bert",), "albert": ("albert",)}
"""Families that a role in the pipeline accepts; a role that is not listed accepts any."""


def check_reference(text: str, role: str, *, max_length: int = 0, auto_class: str = "") -> list[Problem]:
    """What is wrong with `text` as the checkpoint of `role`; fetches at most the config.

    Args:
        text: the checkpoint's name.
        role: the parameter's name, which may decide about the family.
        max_length: tokens that the model is to take; 0 asks for no number.
        auto_class: of the head that it is to have; empty asks for none.
    """
    try:
        reference = parse_reference(text, role)
        if reference.kind == "teacher":
            if role == "teacher":
                return [Problem(role, "the teacher cannot be made from itself.", "Name a checkpoint.")]
            return []
        config = load_config(reference, role)
    except InputError as error:
        return list(error.problems)
    families = ROLE_FAMILIES.get(role)
    if families and config.model_type not in families:
        return [
            Problem(role, f"{text!r} is of the family {config.model_type!r}; {role} must be one of: "
                    f"{', '.join(families)}.", "Name a checkpoint of that family.")
        ]  # fmt: skip
    found = _scratch_problems(config, text, role) if reference.kind == "scratch" else []
    if auto_class and not classifies(config, auto_class):
        what = f"{text!r} is of the family {config.model_type!r}, which has no head of that kind ({auto_class})."
        found.append(Problem(role, what, "Name a checkpoint of another family."))
    limit = position_limit(config)
    if limit is not None and max_length > limit:
        what = f"{max_length} exceeds the {limit} positions of {text!r}."
        found.append(Problem("max_length", what, f"Give at most {limit}."))
    return found


def _scratch_problems(config: PretrainedConfig, text: str, role: str) -> list[Problem]:
    """What keeps a model from being built with that config, for example heads that do not divide the hidden size."""
    import torch
    from transformers import AutoModel

    try:
        with torch.device("meta"):  # shapes only: nothing is allocated
            AutoModel.from_config(config)
    except Exception as error:
        return [Problem(role, f"{text!r} describes no model ({error}).", "Correct the config's fields.")]
    return []


def load_config(reference: Reference, parameter: str, head: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """The checkpoint's config, with the fields of a task's head set.

    Raises:
        InputError: the checkpoint cannot be found, or its config is not readable or has wrong fields.
    """
    from transformers import AutoConfig

    head = dict(head or {})
    try:
        if reference.kind == "scratch":
            config = AutoConfig.for_model(reference.family, **reference.fields)
            unknown = sorted(set(reference.fields) - set(AutoConfig.for_model(reference.family).to_dict()))
            if unknown:
                raise InputError(
                    Problem(parameter, f"{reference.family} has no config field {', '.join(unknown)}.",
                            "See the field names in the family's transformers config.")
                )  # fmt: skip
            for name, value in head.items():
                setattr(config, name, value)
            return config
        return AutoConfig.from_pretrained(
            reference.location, revision=reference.revision, trust_remote_code=False, **head
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            Problem(parameter, f"{reference.text!r} cannot be loaded ({reason}).",
                    "Check the name, the revision, and that the hub can be reached from here.")
        ) from None  # fmt: skip


def load_tokenizer(reference: Reference, parameter: str) -> PreTrainedTokenizerFast:
    """The checkpoint's fast tokenizer.

    Raises:
        InputError: it has none; serving uses the Rust tokenizer, so a slow one would not do.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            reference.location, revision=reference.revision, use_fast=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            Problem(parameter, f"{reference.text!r} has no loadable tokenizer ({str(error).splitlines()[0]}).",
                    "Save the tokenizer beside the weights.")
        ) from None  # fmt: skip
    if not tokenizer.is_fast:
        raise InputError(
            Problem(parameter, f"{reference.text!r} has no fast tokenizer.", "Save one as tokenizer.json.")
        )
    if tokenizer.pad_token is None:
        raise InputError(
            Problem(parameter, f"{reference.text!r} has no padding token.", "Set one in the tokenizer, and save it.")
        )
    return tokenizer


def load_model(reference: Reference, parameter: str, auto_class: str, head: Mapping[str, Any]) -> PreTrainedModel:
    """The checkpoint with the task's head; a head of another size, or none, is replaced by a fresh one.

    Raises:
        InputError: the weights are missing, pickled, or of an architecture without such a head.
    """
    import transformers

    config = load_config(reference, parameter, head)
    loader = getattr(transformers, auto_class)
    try:
        model = loader.from_pretrained(
            reference.location,
            revision=reference.revision,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError) as error:
        raise InputError(
            Problem(parameter, f"{reference.text!r} cannot be loaded ({str(error).splitlines()[0]}).",
                    "Give a checkpoint with safetensors weights whose family has such a head.")
        ) from None  # fmt: skip
    return adapt(model)


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with BERT's special tokens, trained on `texts`.

    The pieces are as in BERT (Devlin et al. 2018, arXiv:1810.04805, section 3): [CLS] text [SEP].
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def with_model(model: models.WordPiece) -> Tokenizer:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = list(texts)
    raw = with_model(models.WordPiece(unk_token="[UNK]"))
    words = (
        word for text in texts for word, _ in raw.pre_tokenizer.pre_tokenize_str(raw.normalizer.normalize_str(text))
    )
    # The trainer numbers these in the order of a hash table, which is another each time, and breaks ties by number.
    # Numbered beforehand, equal texts make equal pieces; in a model of their own, they are pieces like all others.
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=[*special, *inner], show_progress=False)
    raw.train_from_iterator(texts, trainer)
    tokenizer = with_model(models.WordPiece(raw.get_vocab(), unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def model_from_scratch(
    reference: Reference, parameter: str, auto_class: str, head: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """Random weights from a `scratch://` reference, with the vocabulary of `tokenizer`."""
    import transformers

    config = load_config(reference, parameter, {**head, "vocab_size": len(tokenizer)})
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, tokenizer.pad_token_id if name == "pad_token_id" else None)
    return getattr(transformers, auto_class).from_config(config)


def parameter_count(model: PreTrainedModel) -> int:
    """Number of distinct parameters; tied and shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def reference_for(folder: Path) -> Reference:
    """The reference of a model artifact's folder."""
    return Reference(str(folder), "path", str(folder))
