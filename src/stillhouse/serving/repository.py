"""Writes the Triton model repository of a package.

    <served_name>/config.pbtxt            public front model: text in, the task's outputs out (Python backend)
    <served_name>/1/model.py              the task's front model, verbatim
    <served_name>/1/settings.json         what it reads
    <served_name>/1/tokenizer.json
    <served_name>-encoder/config.pbtxt    token ids in, probabilities out (ONNX Runtime backend)
    <served_name>-encoder/1/model.onnx

The very same folder is what NVIDIA's image loads in a cluster and what the local server loads. The configuration keeps
to the schema of Triton 2.51, the oldest server that is to read it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from stillhouse.errors import InputError, ManifestError, Problem
from stillhouse.tasks import Output

__all__ = ["encoder_name", "model_version", "name_problems", "set_model_version", "write_repository"]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")


def name_problems(model_name: str) -> list[Problem]:
    """What is wrong with a registered and served model's name; empty if nothing is."""
    if _NAME.fullmatch(model_name):
        return []
    remedy = "Use 1 to 63 letters, digits, dots, hyphens and underscores, beginning with a letter or digit."
    return [Problem("model_name", f"{model_name!r} cannot name a served model.", remedy)]


def encoder_name(served_name: str) -> str:
    """Name of the encoder model behind a public model."""
    return f"{served_name}-encoder"


def write_repository(
    folder: Path,
    *,
    served_name: str,
    encoder: Path,
    tokenizer: Path,
    front_model: Path,
    outputs: Sequence[Output],
    label_names: Sequence[str],
    max_length: int,
    max_text_bytes: int,
    max_batch_size: int,
    threads: int = 0,
    gpu: bool = False,
) -> None:
    """Write a complete Triton model repository into `folder`, with both models as version 1.

    Args:
        folder: where to write; made if it is not there.
        served_name: name of the public model.
        encoder: ONNX file; inputs `input_ids` and `attention_mask` INT64 [batch, sequence], output `probabilities`
            FP32 [batch, labels].
        tokenizer: `tokenizer.json` of the Rust tokenizers library.
        front_model: source of the task's front model.
        outputs: the public model's outputs.
        label_names: name of each label id.
        max_length: tokens after which a text is cut.
        max_text_bytes: texts longer than this are refused before tokenising.
        max_batch_size: rows of one request, and of one encoder call.
        threads: intra-op threads of the encoder; 0 leaves it to the server (one per core).
        gpu: run the encoder on a GPU.

    Raises:
        InputError: a name or a number is out of range.
    """
    problems = name_problems(served_name)
    limits = {"max_length": max_length, "max_text_bytes": max_text_bytes, "max_batch_size": max_batch_size}
    problems += [
        Problem(where, f"{value} is not a positive number.", "Choose 1 or more.")
        for where, value in limits.items()
        if value < 1
    ]
    if threads < 0:
        problems.append(Problem("threads", f"{threads} is negative.", "Choose 0 (one per core) or more."))
    if problems:
        raise InputError(problems)

    inner = encoder_name(served_name)
    front_folder, encoder_folder = folder / served_name / "1", folder / inner / "1"
    front_folder.mkdir(parents=True, exist_ok=True)
    encoder_folder.mkdir(parents=True, exist_ok=True)

    shutil.copyfile(front_model, front_folder / "model.py")
    shutil.copyfile(tokenizer, front_folder / "tokenizer.json")
    settings = {
        "label_names": list(label_names),
        "max_length": max_length,
        "max_text_bytes": max_text_bytes,
        "max_batch_size": max_batch_size,
        "pad_id": _pad_id(tokenizer),
        "encoder": inner,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (front_folder / "settings.json").write_text(text, encoding="utf-8")
    config = _front_config(served_name, outputs, max_batch_size, instances=2 if gpu else 1)
    (folder / served_name / "config.pbtxt").write_text(config, encoding="utf-8")

    shutil.copyfile(encoder, encoder_folder / "model.onnx")
    config = _encoder_config(inner, len(label_names), max_length, max_batch_size, threads=threads, gpu=gpu)
    (folder / inner / "config.pbtxt").write_text(config, encoding="utf-8")


def model_version(folder: Path, served_name: str) -> str:
    """The one version under which a repository holds its public model.

    Raises:
        ManifestError: the repository has no version of that model, or several.
    """
    root = folder / served_name
    versions = [path.name for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
    if len(versions) != 1:
        found = ", ".join(sorted(versions)) or "none"
        raise ManifestError(str(root), f"should hold one model version and holds {found}.", "Fetch the package again.")
    return versions[0]


def set_model_version(folder: Path, served_name: str, version: str) -> None:
    """Rename the one version folder of both models, so that every answer carries the registered version.

    The configuration serves the latest version, so it stays as it is.

    Raises:
        InputError: `version` is not a positive whole number, which is all that Triton takes.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,17}", version):
        raise InputError(Problem("version", f"{version!r} is not a positive whole number."))
    present = model_version(folder, served_name)
    if present != version:
        # The public model's folder is renamed last: it tells which version the repository is at.
        for name in (encoder_name(served_name), served_name):
            (folder / name / present).rename(folder / name / version)


def _pad_id(tokenizer: Path) -> int:
    """Id of the padding token. Its value does not matter to the result, since the mask hides it; it must only exist."""
    loaded = Tokenizer.from_file(str(tokenizer))
    if loaded.padding:
        return int(loaded.padding["pad_id"])
    ids = (loaded.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((int(index) for index in ids if index is not None), 0)


def _front_config(name: str, outputs: Sequence[Output], max_batch_size: int, *, instances: int) -> str:
    rendered = ",\n".join(
        f'  {{ name: "{output.name}" data_type: {output.data_type} dims: [ {", ".join(map(str, output.dims))} ] }}'
        for output in outputs
    )
    # While one batch is at work the next requests wait and are then taken together: batching without any delay.
    return f"""name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
version_policy {{ latest {{ num_versions: 1 }} }}
input [
  {{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }}
]
output [
{rendered}
]
dynamic_batching {{ }}
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
"""


def _encoder_config(name: str, labels: int, max_length: int, max_batch_size: int, *, threads: int, gpu: bool) -> str:
    warmups = ",\n".join(
        f"""  {{
    name: "{length} tokens"
    batch_size: 1
    inputs {{ key: "input_ids" value {{ data_type: TYPE_INT64 dims: [ {length} ] zero_data: true }} }}
    inputs {{ key: "attention_mask" value {{ data_type: TYPE_INT64 dims: [ {length} ] zero_data: true }} }}
  }}"""
        for length in sorted({min(16, max_length), max_length})
    )
    parameter = (
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}\n' if threads else ""
    )
    return f"""name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
version_policy {{ latest {{ num_versions: 1 }} }}
input [
  {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {labels} ] }}
]
dynamic_batching {{ }}
instance_group [ {{ count: 1 kind: {"KIND_GPU" if gpu else "KIND_CPU"} }} ]
{parameter}model_warmup [
{warmups}
]
"""
