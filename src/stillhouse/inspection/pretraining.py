"""Validate all parameters of a pretraining and its corpus at once, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import digest_json, sha256_file
from stillhouse.errors import InputError, Problem, RegistryError
from stillhouse.inspection.inspect import credential_problems, problems_of, scale_config
from stillhouse.models.checkpoints import check_reference, load_config, load_tokenizer
from stillhouse.models.distilbert import parse_layers
from stillhouse.models.families import position_limit
from stillhouse.models.references import Reference, parse_reference
from stillhouse.pretraining import OBJECTIVES, CorpusConfig, PretrainConfig, inspect_corpus
from stillhouse.pretraining.models import TEACHER_FAMILIES
from stillhouse.progress import Step
from stillhouse.registry import MlflowRegistry, PretrainingRecord
from stillhouse.registry.pretraining import output_problems
from stillhouse.registry.tracking import uri_problems
from stillhouse.versions import PRETRAINING_MODULES, step_versions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["PretrainingInspection", "corpus_config", "inspect_pretraining", "parameter_problems", "pretrain_config"]

_HARMLESS = {"corpus": "https://corpus.invalid/corpus.txt", "checkpoint_dir": "s3://hidden", "output": ""}
"""Locations that a parameter may hold, and what stands in for them."""
_TRAINED = "train://"


@dataclass(frozen=True)
class PretrainingInspection:
    """What a pretraining needs to know before its first cached step."""

    fingerprint: str
    """Of the corpus's present content, and of the tokenizer's where that is in a folder."""
    corpus_version: str
    """Of the code that prepares the corpus."""
    pretrain_version: str
    """Of the code that pretrains, and of the checkpoints that it reads from folders."""
    gpus: str
    """GPUs that the training step's own pod needs: none where the training runs in pods of its own."""


def corpus_config(parameters: Mapping[str, Any]) -> CorpusConfig:
    """The corpus's settings from the pipeline's flat parameters."""
    return CorpusConfig(**{field.name: parameters[field.name] for field in fields(CorpusConfig)})


def pretrain_config(parameters: Mapping[str, Any], *, code_version: str = "") -> PretrainConfig:
    """The training's settings from the pipeline's flat parameters."""
    names = {field.name for field in fields(PretrainConfig)} - {"name", "code_version"}
    return PretrainConfig(
        name=parameters["model_name"], code_version=code_version, **{name: parameters[name] for name in names}
    )


def parameter_problems(parameters: Mapping[str, Any], *, checkpoints: bool = True) -> list[Problem]:
    """Everything wrong with the parameters themselves; the corpus's content is not looked at.

    Args:
        parameters: the pipeline's.
        checkpoints: also look checkpoints and tokenizers up, which takes a model hub.
    """
    found = credential_problems(parameters, _HARMLESS)
    # No message repeats what holds a password.
    hidden = {problem.where for problem in found}
    p = {**parameters, **{name: value for name, value in _HARMLESS.items() if name in hidden}}
    record = PretrainingRecord(model_name=p["model_name"], experiment=p["experiment"], output=p["output"])
    checks: list[Callable[[], list[Problem]]] = [
        corpus_config(p).problems,
        pretrain_config(p).problems,
        scale_config(p).problems,
        record.problems,
        lambda: uri_problems(p["tracking_uri"]),
    ]
    if checkpoints:
        looked_up = (_model_problems, _teacher_problems, _tokenizer_problems)
        checks += [partial(check, p) for check in looked_up]
    return [*dict.fromkeys([*found, *problems_of(checks)])]


def _references(p: Mapping[str, Any]) -> dict[str, Reference]:
    """The checkpoints that are read, by parameter; what is made anew or cannot be parsed is left out."""
    found = {}
    for name in ("model", "tokenizer", *(["teacher"] if p["objective"] == "triple" else [])):
        text = str(p[name])
        if not text or text.startswith((_TRAINED, "scratch://", "teacher://")):
            continue
        try:
            found[name] = parse_reference(text, name)
        except InputError:
            continue  # the settings' own check says so
    return found


def _model_problems(p: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the model, whose config is read for it."""
    text = str(p["model"])
    found = check_reference(text, "model")
    if found or text.startswith("teacher://"):
        return found
    config, families = load_config(parse_reference(text, "model"), "model"), OBJECTIVES.get(p["objective"], ())
    if not text.startswith("scratch://") and families and config.model_type not in families:
        what = f"{text!r} is of the family {config.model_type!r}, which cannot be trained on {p['objective']!r}."
        found.append(Problem("model", what, f"Give a model of: {', '.join(families)}."))
    return found + _position_problems(config, p, "model")


def _teacher_problems(p: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the teacher, whose config is read for it."""
    if p["objective"] != "triple" or not p["teacher"]:
        return []
    config = load_config(parse_reference(str(p["teacher"]), "teacher"), "teacher")
    if config.model_type not in TEACHER_FAMILIES:
        what = f"{p['teacher']!r} is of the family {config.model_type!r}."
        return [Problem("teacher", what, f"Give a checkpoint of: {', '.join(TEACHER_FAMILIES)}.")]
    found = _position_problems(config, p, "teacher")
    try:
        parse_layers(p["layers"], config.num_hidden_layers)
    except InputError as error:
        found += [Problem("layers", problem.what, problem.remedy) for problem in error.problems]
    return found


def _position_problems(config: PretrainedConfig, p: Mapping[str, Any], role: str) -> list[Problem]:
    limit = position_limit(config)
    if not limit or p["sequence_length"] <= limit:
        return []
    what = f"{p['sequence_length']} exceeds the {limit} positions of the {role}."
    return [Problem("sequence_length", what, f"Give at most {limit}.")]


def _tokenizer_problems(p: Mapping[str, Any]) -> list[Problem]:
    """Whether the corpus is cut into the very tokens that the checkpoints know, before all of it is."""
    references, found = _references(p), list[Problem]()
    if str(p["tokenizer"]).startswith(_TRAINED):
        return [
            Problem("tokenizer", f"is trained anew, and {name} knows the tokens of its own alone.",
                    f"Give tokenizer={p[name]}.")
            for name in references
        ]  # fmt: skip
    vocabularies = {}
    for name, reference in references.items():
        try:
            vocabularies[name] = load_tokenizer(reference, name).get_vocab()
        except InputError as error:
            found += error.problems
    for name in ("model", "teacher"):
        if name in vocabularies and vocabularies[name] != vocabularies.get("tokenizer", vocabularies[name]):
            what = f"{p['tokenizer']!r} is another tokenizer than that of {name}."
            found.append(Problem("tokenizer", what, f"Give tokenizer={p[name]}."))
    return found


def inspect_pretraining(parameters: Mapping[str, Any], *, step: Step | None = None) -> PretrainingInspection:
    """Check every parameter, and read the corpus through once.

    Raises:
        InputError: with everything that is wrong, of the parameters, of the corpus and of the registry.
    """
    found = parameter_problems(parameters) + scale_config(parameters).machine_problems()
    wrong = {problem.where for problem in found}
    if "output" not in wrong:
        found += output_problems(str(parameters["output"]))
    content = ""
    if not credential_problems(parameters, ("corpus",)):
        report = inspect_corpus(corpus_config(parameters), step)
        found += report.problems
        content = report.fingerprint
    if "tracking_uri" not in wrong:
        try:
            # Every run is recorded in the end: better to hear of it before the training.
            MlflowRegistry(parameters["tracking_uri"]).reach()
        except RegistryError as error:
            found.append(Problem("tracking_uri", str(error)))
    if found:
        raise InputError(dict.fromkeys(found))
    versions = step_versions(PRETRAINING_MODULES)
    folders = {name: _folder_digest(reference) for name, reference in _references(parameters).items()}
    tokenizer = folders.pop("tokenizer", "")
    return PretrainingInspection(
        fingerprint=digest_json([content, tokenizer]),
        corpus_version=versions["prepare_corpus"],
        pretrain_version=digest_json([versions["pretrain"], folders])[:16],
        gpus=str(scale_config(parameters).step_gpus),
    )


def _folder_digest(reference: Reference) -> str:
    """Of the files of a checkpoint's folder, which may be another one under the same name; empty for a hub's."""
    if reference.kind != "path":
        return ""
    root = Path(reference.location)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return digest_json({path.relative_to(root).as_posix(): sha256_file(path) for path in files})
