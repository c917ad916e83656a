"""Load checkpoints with a task's head, make them from scratch, and save them as model artifacts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillhouse.errors import InputError, Problem
from stillhouse.models.albert import sharing_fields
from stillhouse.models.bert_like import BERT_LIKE
from stillhouse.models.families import adapt, classifies, position_limit
from stillhouse.models.references import Reference, parse_reference
from stillhouse.models.shape import FIELD, apply_shape, shape_problems

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "build_model",
    "check_reference",
    "load_config",
    "load_model",
    "load_tokenizer",
    "made_problems",
    "model_from_scratch",
    "parameter_count",
    "save_model",
    "train_tokenizer",
    "with_special_tokens",
]

_log = logging.getLogger(__name__)

ROLE_FAMILIES = {"teacher": BERT_LIKE, "albert": ("albert",), "student": ("distilbert", "albert", *BERT_LIKE)}
"""Families that a role in the pipeline accepts; a role that is not listed accepts any."""
_MADE_FROM_TEACHER = {
    "albert": ("", "albert"),
    "student": ("", "distilbert", "albert"),
    "model": ("", "distilbert", "albert"),  # what is pretrained
}
"""Families that a role can be made in from the teacher."""
_ALBERT_FIELDS = {
    "model": ("embedding_size", "layers", "layer_sharing"),
    "albert": ("layer_sharing",),  # the others are parameters of their own
    "student": ("layer_sharing",),
}
"""What `teacher://albert?…` may say in a role."""


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
            return made_problems(reference, role)
        config = load_config(reference, role)
    except InputError as error:
        return list(error.problems)
    families = ROLE_FAMILIES.get(role)
    if families and config.model_type not in families:
        return [
            Problem(role, f"{text!r} is of the family {config.model_type!r}; {role} must be one of: "
                    f"{', '.join(families)}.", "Name a checkpoint of that family.")
        ]  # fmt: skip
    found = _scratch_problems(config, text, role) if reference.kind == "scratch" else shape_problems(config, role)
    if auto_class and not classifies(config, auto_class):
        what = f"{text!r} is of the family {config.model_type!r}, which has no head of that kind ({auto_class})."
        found.append(Problem(role, what, "Name a checkpoint of another family."))
    limit = position_limit(config)
    if limit is not None and max_length > limit:
        what = f"{max_length} exceeds the {limit} positions of {text!r}."
        found.append(Problem("max_length", what, f"Give at most {limit}."))
    return found


def made_problems(reference: Reference, role: str) -> list[Problem]:
    """What is wrong with a `teacher://…` as the checkpoint of `role`."""
    if role not in _MADE_FROM_TEACHER:
        return [Problem(role, "the teacher cannot be made from itself.", "Name a checkpoint.")]
    if reference.family not in _MADE_FROM_TEACHER[role]:
        wanted = " or ".join(f"teacher://{family}" for family in _MADE_FROM_TEACHER[role])
        return [Problem(role, f"{reference.text!r} is no model for {role}.", f"Write {wanted}.")]
    known = _ALBERT_FIELDS[role] if "albert" in (reference.family, role) else ()
    if other := sorted(set(reference.fields) - set(known)):
        what = f"{reference.text!r} gives {', '.join(other)}, and the teacher decides on that."
        return [Problem(role, what, f"An ALBERT takes {', '.join(_ALBERT_FIELDS[role])} alone.")]
    found = []
    for name in ("embedding_size", "layers"):
        value = reference.fields.get(name, 1)
        if not (isinstance(value, int) and value >= 1):
            found.append(Problem(role, f"{name}={value} will not do.", "Give a whole number from 1."))
    try:
        sharing_fields(reference.fields, role)
    except InputError as error:
        found += error.problems
    return found


def _scratch_problems(config: PretrainedConfig, text: str, role: str) -> list[Problem]:
    """What keeps a model from being built with that config, for example heads that do not divide the hidden size."""
    try:
        with torch.device("meta"):  # shapes only: nothing is allocated
            build_model(config, "AutoModel", role)
    except InputError as error:
        return list(error.problems)
    except Exception as error:
        return [Problem(role, f"{text!r} describes no model ({error}).", "Correct the config's fields.")]
    return []


def load_config(reference: Reference, parameter: str, head: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """The checkpoint's config, with the fields of a task's head set.

    From scratch, an ALBERT's fields may hold `layer_sharing`; see `stillhouse.models.albert`.

    Raises:
        InputError: the checkpoint cannot be found, or its config is not readable or has wrong fields.
    """
    from transformers import AutoConfig

    head = dict(head or {})
    try:
        if reference.kind == "scratch":
            fields = dict(reference.fields)
            unknown = set(fields) - set(AutoConfig.for_model(reference.family).to_dict())
            if reference.family == "albert":
                unknown.discard("layer_sharing")
                fields = sharing_fields(fields, parameter)
            if unknown:
                raise InputError(
                    Problem(parameter, f"{reference.family} has no config field {', '.join(sorted(unknown))}.",
                            "See the field names in the family's transformers config.")
                )  # fmt: skip
            config = AutoConfig.for_model(reference.family, **fields)
            for name, value in head.items():
                setattr(config, name, value)
            return config
        config = AutoConfig.from_pretrained(
            reference.location, revision=reference.revision, trust_remote_code=False, **head
        )
        # What was saved in 16 bits would be trained, exported and measured in them; mixed precision is another matter.
        config.dtype = torch.float32
        return config
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


def build_model(config: PretrainedConfig, auto_class: str, parameter: str = "checkpoint") -> PreTrainedModel:
    """A model of that config with fresh weights, in the shape of its own that the config names, if any.

    Args:
        config: also of no transformers shape; see `stillhouse.models.shape`.
        auto_class: `AutoModel`, or one with a head.
        parameter: what to blame for a shape that cannot be.

    Raises:
        InputError: the config names no such shape.
    """
    import transformers

    return apply_shape(getattr(transformers, auto_class).from_config(config), parameter)


def load_model(reference: Reference, parameter: str, auto_class: str, head: Mapping[str, Any]) -> PreTrainedModel:
    """The checkpoint with the task's head; a head of another size, or none, is replaced by a fresh one.

    Raises:
        InputError: the weights are missing, pickled, or of an architecture without such a head.
    """
    import transformers
    from safetensors import SafetensorError

    config = load_config(reference, parameter, head)
    loader = getattr(transformers, auto_class)
    try:
        if getattr(config, FIELD, None):
            return _load_own_shape(reference, parameter, auto_class, config)
        model = loader.from_pretrained(
            reference.location,
            revision=reference.revision,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            Problem(parameter, f"{reference.text!r} cannot be loaded ({str(error).splitlines()[0]}).",
                    "Give a checkpoint with safetensors weights whose family has such a head.")
        ) from None  # fmt: skip
    return adapt(model)


def _load_own_shape(reference: Reference, parameter: str, auto_class: str, config: PretrainedConfig) -> PreTrainedModel:
    """A checkpoint that `from_pretrained` would build in another shape than it has."""
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    model = build_model(config, auto_class, parameter)
    file = cached_file(reference.location, "model.safetensors", revision=reference.revision)
    assert file is not None
    tensors = _named_as_in(model, load_file(file))
    own = dict(model.named_parameters(remove_duplicate=False))
    encoder = _encoder_names(model)
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    # What is tied to a tensor of the file is filled with it.
    filled = {id(own[name]) for name in fitting}
    missing = sorted(name for name in encoder if id(own[name]) not in filled)
    if missing:
        raise InputError(
            Problem(parameter, f"{reference.text!r} has no {missing[0]} of the shape {tuple(own[missing[0]].shape)} "
                    f"that its config names ({len(missing)} such).", "Save it again with the release that made it.")
        )  # fmt: skip
    fresh = sorted(name for name, value in own.items() if id(value) not in filled)
    if fresh:
        _log.info("%s starts with fresh weights: %s", parameter, ", ".join(fresh))
    model.load_state_dict(fitting, strict=False)
    return model.eval()


def _named_as_in(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under the names that `model` has for them, whether either has a head or not."""
    prefix = f"{model.base_model_prefix}."
    headless = not any(name.startswith(prefix) for name in tensors)
    if model.base_model is model:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return {f"{prefix}{name}" if headless else name: tensor for name, tensor in tensors.items()}


def _encoder_names(model: PreTrainedModel) -> set[str]:
    """The parameters that a checkpoint must hold: all of the encoder's but a pooler, which not every head has."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    names = (name for name, _ in model.base_model.named_parameters(remove_duplicate=False))
    return {prefix + name for name in names if not name.startswith("pooler.")}


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write the model's config and its weights, as safetensors, each tensor once, to `folder`.

    A shape of its own goes into the config; `load_model` reads it back.
    """
    for tied, source in getattr(model, "all_tied_weights_keys", {}).items():
        # An untied copy would be dropped without a word.
        assert model.get_parameter(tied) is model.get_parameter(source), f"{tied} is no longer tied to {source}"
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder, safe_serialization=True)


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with BERT's special tokens, trained on `texts`.

    The pieces are as in BERT (Devlin et al. 2018, arXiv:1810.04805, section 3): [CLS] text [SEP].
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

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
    return with_special_tokens(tokenizer, max_length)


def with_special_tokens(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that knows BERT's special tokens and puts them in: [CLS] text [SEP], or [CLS] a [SEP] b [SEP]."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

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
    config = load_config(reference, parameter, {**head, "vocab_size": len(tokenizer)})
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, tokenizer.pad_token_id if name == "pad_token_id" else None)
    return build_model(config, auto_class, parameter)


def parameter_count(model: PreTrainedModel) -> int:
    """Number of distinct parameters; tied and shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def reference_for(folder: Path) -> Reference:
    """The reference of a model artifact's folder."""
    return Reference(str(folder), "path", str(folder))
