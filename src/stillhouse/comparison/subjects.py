"""What can be compared, and how it is named.

NAME                 an architecture of the papers, such as `bert-base` (see `stillhouse.models.named`): random weights
FILE.json, FOLDER    a Hugging Face config, or a folder with a `config.json` and no weights: random weights
FOLDER               a checkpoint, for example a model artifact of a run
hub://…, minilm://, scratch://…   as in the pipeline's parameters (see `stillhouse.models.references`)

A name that is also a folder's means the architecture; `./bert-base` means the folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, Problem
from stillhouse.models import checkpoints
from stillhouse.models.named import NAMED
from stillhouse.models.references import Reference, parse_reference

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["WHERE", "Subject", "parse_subject", "parse_subjects"]

WHERE = "MODEL"
"""What problems with a model are filed under: the command's argument."""


@dataclass(frozen=True)
class Subject:
    """One model to compare."""

    name: str
    """Short and unlike the others'."""
    text: str
    """As it was given."""
    config: PretrainedConfig
    checkpoint: Reference | None
    """Where the weights are; None where they are random."""

    @property
    def family(self) -> str:
        """`model_type` of the config: `bert`, `albert`, …"""
        return str(self.config.model_type)


def parse_subjects(texts: Sequence[str]) -> tuple[list[Subject], list[Problem]]:
    """All of them in order, with different names, and what is wrong with the others."""
    found: list[Subject] = []
    problems: list[Problem] = []
    for text, count in Counter(texts).items():
        if count > 1:
            problems.append(Problem(WHERE, f"{text!r} is given {count} times.", "Give each model once."))
        try:
            found.append(parse_subject(text))
        except InputError as error:
            problems += error.problems
    taken = Counter(subject.name for subject in found)
    # Runs end in folders of the same name, so the whole path tells them apart.
    return [replace(s, name=s.text) if taken[s.name] > 1 else s for s in found], problems


def parse_subject(text: str) -> Subject:
    """One model by its name; of a checkpoint on a hub the config is fetched, and nothing else.

    Raises:
        InputError: nothing of that name is there, or its config cannot be read.
    """
    if text in NAMED:
        reference = parse_reference(f"scratch://{text}", WHERE)
        return Subject(text, text, checkpoints.load_config(reference, WHERE), None)
    path = Path(text).expanduser()
    if path.suffix == ".json" and path.is_file():
        return Subject(_config_name(path), text, _read_config(path), None)
    if (path / "config.json").is_file() and not list(path.glob("*.safetensors")):
        if list(path.glob("*.bin")):
            what = f"{text!r} has no *.safetensors weights; pickled weights are never read."
            raise InputError(Problem(WHERE, what, "Save the checkpoint with `save_pretrained`."))
        return Subject(path.resolve().name, text, _read_config(path / "config.json"), None)
    if not text or ("://" not in text and not path.exists()):
        what = f"{text!r} is neither an architecture nor a file or folder."
        raise InputError(Problem(WHERE, what, f"Give one of {', '.join(NAMED)}; or a config or a checkpoint."))
    reference = parse_reference(text, WHERE)
    if reference.kind == "teacher":
        raise InputError(Problem(WHERE, f"{text!r} is made in a run.", "Give the folder of the model that came of it."))
    config = checkpoints.load_config(reference, WHERE)
    if reference.kind == "scratch":
        return Subject(text.removeprefix("scratch://"), text, config, None)
    name = reference.text.removesuffix("://") if reference.text.endswith("://") else Path(reference.location).name
    return Subject(name, text, config, reference)


def _config_name(path: Path) -> str:
    return path.stem if path.stem != "config" else path.resolve().parent.name


def _read_config(path: Path) -> PretrainedConfig:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    def refuse(what: str, remedy: str) -> InputError:
        return InputError(Problem(WHERE, f"{str(path)!r} {what}", remedy))

    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refuse(f"cannot be read as JSON ({error}).", "Give a Hugging Face config.") from None
    family = fields.get("model_type") if isinstance(fields, dict) else None
    if family not in CONFIG_MAPPING:
        raise refuse(f"has the model_type {family!r}, which transformers does not know.", "Correct the config.")
    try:
        return CONFIG_MAPPING[family].from_dict(fields)
    except Exception as error:  # what a config refuses, it says in many ways
        raise refuse(f"is no config of {family} ({' '.join(str(error).split())[:200]}).", "Correct it.") from None
