"""Extra candidates: checkpoints of any family that a run fine-tunes and measures beside its own three models.

Each is written as a checkpoint's name (see `stillhouse.models.references`), or as NAME=CHECKPOINT. The name is what
reports, the registry and the steps call it; where none is given, it is derived from the checkpoint's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import InputError, Problem

__all__ = ["PARAMETER", "RESERVED", "ROLES", "Candidate", "parse_candidate", "parse_candidates"]

PARAMETER = "extra_candidates"
ROLES = ("teacher", "student", "albert")
"""The models that every run has."""
RESERVED = (*ROLES, "champion")
"""Names that mean something else in an evaluation."""
_LONGEST = 24
"""The name is part of that of a TrainJob, whose pods get longer ones, of at most 63 letters."""
_NAME = re.compile(rf"[a-z0-9]([-a-z0-9]{{0,{_LONGEST - 2}}}[a-z0-9])?")
_NAMED = re.compile(r"([^=:/?]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Candidate:
    """One extra candidate."""

    name: str
    """Lower-case letters, digits and hyphens; unique within a run."""
    checkpoint: str
    """As `stillhouse.models.references` reads it."""

    def __str__(self) -> str:
        return f"{self.name}={self.checkpoint}"


def parse_candidate(text: str) -> Candidate:
    """Read `CHECKPOINT` or `NAME=CHECKPOINT`; whether there is such a checkpoint is not looked at.

    Raises:
        InputError: the name given will not do, or none can be derived.
    """
    named = _NAMED.fullmatch(text.strip())
    name, checkpoint = (named[1].strip(), named[2].strip()) if named else ("", text.strip())
    if not checkpoint:
        raise InputError(Problem(PARAMETER, f"{text!r} names no checkpoint.", "Write CHECKPOINT or NAME=CHECKPOINT."))
    if named and not _NAME.fullmatch(name):
        remedy = f"Use 1 to {_LONGEST} lower-case letters, digits and hyphens, beginning and ending with no hyphen."
        raise InputError(Problem(PARAMETER, f"{name!r} in {text!r} cannot name a candidate.", remedy))
    name = name or _derived(checkpoint)
    if not name:
        raise InputError(Problem(PARAMETER, f"{text!r} gives no name to go by.", "Write NAME=CHECKPOINT."))
    return Candidate(name, checkpoint)


def _derived(checkpoint: str) -> str:
    """`roberta-base` for `hub://FacebookAI/roberta-base@v1`, `/models/RoBERTa_base/` and the like."""
    scheme, separator, rest = checkpoint.partition("://")
    # Without a hub's revision, or the fields of a config; `minilm://` has but its scheme.
    path = rest.partition("@" if scheme == "hub" else "?")[0] if separator else checkpoint
    last = path.rstrip("/").rpartition("/")[2] or (scheme if separator else "")
    return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:_LONGEST].strip("-")


def parse_candidates(items: Sequence[Any]) -> tuple[list[Candidate], list[Problem]]:
    """All extra candidates of a run, and everything wrong with how they are written; what is wrong is left out."""
    found: dict[str, Candidate] = {}
    problems: list[Problem] = []
    for item in items:
        if not isinstance(item, str):
            remedy = 'Give a list of checkpoints, such as ["hub://FacebookAI/roberta-base"].'
            problems.append(Problem(PARAMETER, f"{item!r} is not text.", remedy))
            continue
        try:
            candidate = parse_candidate(item)
        except InputError as error:
            problems += error.problems
            continue
        if candidate.name in RESERVED:
            what = f"{item!r} would be called {candidate.name!r}, which is what another candidate is called."
            problems.append(Problem(PARAMETER, what, "Write NAME=CHECKPOINT with another name."))
        elif candidate.name in found:
            what = f"{item!r} and {found[candidate.name].checkpoint!r} would both be called {candidate.name!r}."
            problems.append(Problem(PARAMETER, what, "Write NAME=CHECKPOINT with a name of its own for each."))
        elif candidate.checkpoint == "teacher://":
            what = f"{item!r} is made from the teacher, which the parameter `albert` does."
            problems.append(Problem(PARAMETER, what, "Name a checkpoint."))
        else:
            found[candidate.name] = candidate
    return list(found.values()), problems
