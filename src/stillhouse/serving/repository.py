"""Writes the Triton model repository of a package.

    <served_name>/config.pbtxt            public front model: text in, the task's outputs out (Python backend)
    <served_name>/1/model.py              the task's front model, verbatim
    <served_name>/1/*.py                  what it needs beside it: its queue, the request log
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
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from stillhouse.errors import InputError, ManifestError, Problem
from stillhouse.tasks import Output, Task

__all__ = [
    "DEVICES",
    "ServingOptions",
    "encoder_name",
    "model_version",
    "name_problems",
    "set_model_version",
    "write_repository",
]

DEVICES = ("cpu", "gpu")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
_TENSORRT_WORKSPACE = 1 << 30  # bytes


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How a package is to be served; all of it ends up in Triton's model configuration."""

    max_text_bytes: int = 20_000
    """Longer texts, in UTF-8 bytes, are refused before tokenising."""
    max_batch_size: int = 64
    """Largest number of texts in one request, and of rows in one call of the encoder."""
    max_queue_size: int = 256
    """Requests that may wait for the model; one more is refused at once (gRPC status UNAVAILABLE)."""
    max_wait_ms: int = 1000
    """A request that would have to wait longer than this for its turn is refused at once as well; 0 is no limit."""
    batch_rows: int = 8
    """Texts of several requests that are taken together. More are faster in all, and each waits for the slowest."""
    serving_device: str = "cpu"
    """`cpu`, or `gpu`: copies of the encoder on each GPU that the server sees."""
    encoder_instances: int = 1
    """Copies of the encoder, on each GPU where there are some."""
    encoder_threads: int = 0
    """Threads of each copy on a CPU; 0 is one per core that the server may use."""
    encoder_in_front: bool = False
    """On a CPU, run the encoder in the front model's own process, where the server's Python has onnxruntime: two
    hand-overs between processes less for each call, and a second copy of the encoder in memory, as it can still be
    called by itself."""
    tensorrt: bool = False
    """On a GPU, run the encoder with TensorRT (16-bit floats)."""
    response_cache: bool = False
    """Answer a repeated request from memory, where the server has a cache."""

    def problems(self) -> list[Problem]:
        """Everything wrong with the options, by the name of the pipeline's parameter."""
        found = []
        ranges = {
            "max_text_bytes": (1, 1_000_000, "bytes"),
            "max_batch_size": (1, 1024, "texts"),
            "max_queue_size": (1, 100_000, "requests"),
            "max_wait_ms": (0, 600_000, "milliseconds"),
            "batch_rows": (1, 1024, "texts"),
            "encoder_instances": (1, 64, "copies"),
            "encoder_threads": (0, 1024, "threads"),
        }
        for where, (lowest, highest, unit) in ranges.items():
            value = getattr(self, where)
            if not lowest <= value <= highest:
                found.append(Problem(where, f"{value} will not do.", f"Give {lowest} to {highest} {unit}."))
        if self.serving_device not in DEVICES:
            remedy = f"Choose one of: {', '.join(DEVICES)}."
            found.append(Problem("serving_device", f"{self.serving_device!r} is unknown.", remedy))
        elif self.tensorrt and self.serving_device != "gpu":
            found.append(Problem("tensorrt", "TensorRT runs on GPUs only.", "Set serving_device=gpu as well."))
        if self.encoder_in_front and self.serving_device == "gpu":
            what = "The front model runs its encoder on CPUs only."
            found.append(Problem("encoder_in_front", what, "Leave it, or set serving_device=cpu."))
        if self.encoder_in_front and self.encoder_instances > 1:
            what = f"The front model runs one copy of its encoder, and encoder_instances is {self.encoder_instances}."
            found.append(Problem("encoder_in_front", what, "Leave it, or set encoder_instances=1."))
        return found


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
    task: Task,
    label_names: Sequence[str],
    max_length: int,
    options: ServingOptions,
    pad_id: int | None = None,
) -> None:
    """Write a complete Triton model repository into `folder`, with both models as version 1.

    Args:
        folder: where to write; made if it is not there.
        served_name: name of the public model.
        encoder: ONNX file; inputs `input_ids` and `attention_mask` INT64 [batch, sequence], output `probabilities`
            FP32 [batch, labels].
        tokenizer: `tokenizer.json` of the Rust tokenizers library.
        task: whose front model and outputs the public model has.
        label_names: name of each label id.
        max_length: tokens after which a text is cut.
        options: how it is to be served.
        pad_id: token that rows of a batch are filled up with, and by whose id some families find where a text ends;
            None looks it up in the tokenizer by its usual names.

    Raises:
        InputError: a name or a number is out of range.
    """
    problems = [*name_problems(served_name), *options.problems()]
    if max_length < 1:
        problems.append(Problem("max_length", f"{max_length} is not a positive number.", "Choose 1 or more."))
    if problems:
        raise InputError(problems)

    inner = encoder_name(served_name)
    front_folder, encoder_folder = folder / served_name / "1", folder / inner / "1"
    front_folder.mkdir(parents=True, exist_ok=True)
    encoder_folder.mkdir(parents=True, exist_ok=True)

    shutil.copyfile(task.front_model, front_folder / "model.py")
    for name in task.front_parts:
        shutil.copyfile(task.front_model.with_name(name), front_folder / name)
    shutil.copyfile(tokenizer, front_folder / "tokenizer.json")
    settings = {
        "label_names": list(label_names),
        "max_length": max_length,
        "max_text_bytes": options.max_text_bytes,
        "max_batch_size": options.max_batch_size,
        "max_queue_size": options.max_queue_size,
        "max_wait_ms": options.max_wait_ms,
        "batch_rows": options.batch_rows,
        "encoder_instances": options.encoder_instances,
        "encoder_threads": options.encoder_threads,
        "encoder_in_front": options.encoder_in_front,
        "pad_id": _pad_id(tokenizer) if pad_id is None else pad_id,
        "encoder": inner,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (front_folder / "settings.json").write_text(text, encoding="utf-8")
    config = _front_config(served_name, task, label_names, options)
    (folder / served_name / "config.pbtxt").write_text(config, encoding="utf-8")

    shutil.copyfile(encoder, encoder_folder / "model.onnx")
    config = _encoder_config(inner, len(label_names), max_length, options)
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
    """Id of the padding token. The mask hides it from most families; it must only exist."""
    loaded = Tokenizer.from_file(str(tokenizer))
    if loaded.padding:
        return int(loaded.padding["pad_id"])
    ids = (loaded.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((int(index) for index in ids if index is not None), 0)


def _front_config(name: str, task: Task, label_names: Sequence[str], options: ServingOptions) -> str:
    outputs = ",\n".join(_output(output) for output in task.outputs(label_names))
    # Clients read from these what they are talking to.
    parameters = "\n".join(
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in {
            "task": task.name,
            "label_names": json.dumps(list(label_names)),
            "max_text_bytes": str(options.max_text_bytes),
        }.items()
    )
    return f"""name: "{name}"
backend: "python"
max_batch_size: {options.max_batch_size}
version_policy {{ latest {{ num_versions: 1 }} }}
input [
  {{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }}
]
output [
{outputs}
]
response_cache {{ enable: {"true" if options.response_cache else "false"} }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{parameters}
"""


def _output(output: Output) -> str:
    dims = ", ".join(map(str, output.dims))
    return f'  {{ name: "{output.name}" data_type: {output.data_type} dims: [ {dims} ] }}'


def _quoted(text: str) -> str:
    """A string of Protobuf's text format, which escapes as JSON does as long as all is ASCII."""
    return json.dumps(text)


def _encoder_config(name: str, labels: int, max_length: int, options: ServingOptions) -> str:
    gpu = options.serving_device == "gpu"
    # The first call of a shape is slow on a GPU, where memory is got for it; the largest one gets the most.
    shapes = [(1, min(16, max_length)), (1, max_length), *([(options.max_batch_size, max_length)] if gpu else [])]
    warmups = ",\n".join(
        f"""  {{
    name: "{rows} x {length} tokens"
    batch_size: {rows}
    inputs {{ key: "input_ids" value {{ data_type: TYPE_INT64 dims: [ {length} ] zero_data: true }} }}
    inputs {{ key: "attention_mask" value {{ data_type: TYPE_INT64 dims: [ {length} ] zero_data: true }} }}
  }}"""
        for rows, length in dict.fromkeys(shapes)
    )
    threads = (
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{options.encoder_threads}" }} }}\n'
        if options.encoder_threads
        else ""
    )
    # The front model's calls are batches already, so this is for those who call a GPU with token ids. On a CPU, whose
    # cores are all at work on one call, the batcher would only be one more thread to wake up on the way (some 0.3 ms).
    batching = "dynamic_batching { }\n" if gpu else ""
    # Every version that is there is served: a front model asks for its own, also while the next one is being loaded.
    return f"""name: "{name}"
backend: "onnxruntime"
max_batch_size: {options.max_batch_size}
version_policy {{ all {{ }} }}
input [
  {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {labels} ] }}
]
{batching}instance_group [ {{ count: {options.encoder_instances} kind: {"KIND_GPU" if gpu else "KIND_CPU"} }} ]
{threads}{_tensorrt(max_length, options)}model_warmup [
{warmups}
]
"""


def _tensorrt(max_length: int, options: ServingOptions) -> str:
    """Settings of TensorRT for all shapes that can come: without its range it builds an engine anew for each."""
    if not options.tensorrt:
        return ""

    def shape(rows: int, length: int) -> str:
        return ",".join(f"{name}:{rows}x{length}" for name in ("input_ids", "attention_mask"))

    values = {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": str(_TENSORRT_WORKSPACE),
        # 16-bit floats overflow in the variance of wide layers.
        "trt_layer_norm_fp32_fallback": "1",
        "trt_profile_min_shapes": shape(1, 1),
        "trt_profile_opt_shapes": shape(min(8, options.max_batch_size), min(64, max_length)),
        "trt_profile_max_shapes": shape(options.max_batch_size, max_length),
    }
    lines = "\n".join(f'    parameters {{ key: "{key}" value: "{value}" }}' for key, value in values.items())
    return f"""optimization {{ execution_accelerators {{
  gpu_execution_accelerator: [ {{
    name: "tensorrt"
{lines}
  }} ]
}} }}
"""
