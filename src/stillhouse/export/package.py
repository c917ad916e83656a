"""From a model artifact to packages: one complete Triton model repository per precision, checked against PyTorch."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stillhouse.artifacts import DatasetManifest, ModelManifest, PackageManifest, PackagesManifest
from stillhouse.data.dataset import read_split
from stillhouse.errors import InputError, ManifestError, ParityError
from stillhouse.export.config import PRECISIONS, PackageConfig
from stillhouse.models import checkpoints
from stillhouse.progress import Step
from stillhouse.serving.repository import write_repository
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.tasks import Task, get_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["package_model"]

_log = logging.getLogger(__name__)


def package_model(
    config: PackageConfig,
    *,
    model_dir: Path,
    dataset_dir: Path,
    output_dir: Path,
    required: bool = True,
    step: Step | None = None,
) -> PackagesManifest:
    """Export the model artifact in each precision and write `output_dir/<precision>/`, a package each.

    A precision whose outputs stray from PyTorch's by more than its tolerance is refused: it is not written, and the
    manifest says why. A model that is not `required` and of which no package can be made, is refused as a whole: the
    manifest says why, and the model itself is kept beside it, to be evaluated in PyTorch.

    Raises:
        InputError: the settings will not do, or the family of a required model cannot be exported.
        ParityError: FP32 of a required model is outside its tolerance, so the export is wrong.
    """
    if problems := config.problems():
        raise InputError(problems)
    try:
        return _write_packages(config, model_dir=model_dir, dataset_dir=dataset_dir, output_dir=output_dir, step=step)
    except (ManifestError, OSError, MemoryError):
        raise  # of the machine or of an artifact, not of the model
    except Exception as error:
        if required:
            raise
        _log.warning("no package can be made of the model in %s", model_dir, exc_info=error)
        shutil.rmtree(output_dir, ignore_errors=True)
        return _keep_unservable(model_dir, dataset_dir, output_dir, _reason(error))


def _reason(error: Exception) -> str:
    """Why there is no package, in a sentence."""
    if isinstance(error, InputError):
        return " ".join(problem.what for problem in error.problems)
    first = next(iter(str(error).strip().splitlines()), "")
    what = first if isinstance(error, ParityError) else f"the export failed ({type(error).__name__}: {first[:200]})"
    return f"{what.rstrip('.')}."


def _keep_unservable(model_dir: Path, dataset_dir: Path, output_dir: Path, reason: str) -> PackagesManifest:
    """Write a `packages` artifact without a package, which says why, and holds the model for its evaluation."""
    shutil.copytree(model_dir, output_dir / PackagesManifest.checkpoint_folder)
    manifest = PackagesManifest(
        producer="package",
        inputs={"model": ModelManifest.digest(model_dir), "dataset": DatasetManifest.digest(dataset_dir)},
        name=ModelManifest.load(model_dir).name,
        precisions=[],
        refused={},
        unservable=reason,
    )
    manifest.save(output_dir)
    return manifest


def _write_packages(
    config: PackageConfig, *, model_dir: Path, dataset_dir: Path, output_dir: Path, step: Step | None
) -> PackagesManifest:
    from stillhouse.export.onnx import convert_fp16, export_onnx, quantise_int8
    from stillhouse.export.static_int8 import calibration_batches, evenly_spaced, quantise_int8_static

    model_manifest = ModelManifest.load(model_dir)
    inputs = {"model": ModelManifest.digest(model_dir), "dataset": DatasetManifest.digest(dataset_dir)}
    task = get_task(model_manifest.task)
    reference = checkpoints.reference_for(model_dir)
    head = task.head_config(model_manifest.label_names)
    model = checkpoints.load_model(reference, "model", task.auto_class, head)
    model.eval()
    texts = read_split(dataset_dir, "validation")["text"][: config.parity_rows]
    tokenizer = checkpoints.load_tokenizer(reference, "model")
    expected = _pytorch_probabilities(model, task, tokenizer, texts, model_manifest.max_length)

    # FP32 first: the others are made from it.
    precisions = sorted(config.precision_list(), key=PRECISIONS.index)
    written: list[str] = []
    refused: dict[str, str] = {}
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stillhouse-export-") as scratch:
        onnx_paths = {precision: Path(scratch) / f"{precision}.onnx" for precision in precisions}
        for index, precision in enumerate(precisions):
            if step:
                step.progress(index, len(precisions), f"exporting {precision}")
            if precision == "fp32":
                export_onnx(model, task, onnx_paths["fp32"])
            elif precision == "int8-static":
                rows = evenly_spaced(read_split(dataset_dir, "train")["text"], config.calibration_rows)
                batches = calibration_batches(rows, tokenizer, model_manifest.max_length)
                quantise_int8_static(onnx_paths["fp32"], onnx_paths[precision], batches)
            else:
                convert = {"fp16": convert_fp16, "int8": quantise_int8}[precision]
                convert(onnx_paths["fp32"], onnx_paths[precision])
            folder = output_dir / precision
            write_repository(
                folder / "triton",
                served_name=config.served_name,
                encoder=onnx_paths[precision],
                tokenizer=model_dir / "tokenizer.json",
                task=task,
                label_names=model_manifest.label_names,
                max_length=model_manifest.max_length,
                options=config.options,
                pad_id=checkpoints.load_tokenizer(reference, "model").pad_token_id,
            )
            manifest = PackageManifest(
                producer="package",
                inputs=inputs,
                name=model_manifest.name,
                served_name=config.served_name,
                task=task.name,
                family=model_manifest.family,
                precision=precision,
                label_names=model_manifest.label_names,
                parameters=model_manifest.parameters,
                max_length=model_manifest.max_length,
                max_text_bytes=config.options.max_text_bytes,
                max_batch_size=config.options.max_batch_size,
                parity={},
                bytes=onnx_paths[precision].stat().st_size,
            )
            manifest.save(folder)  # the runtime that measures parity reads it
            parity, fault = _parity(config, folder, precision, texts, expected)
            if fault:
                shutil.rmtree(folder)
                refused[precision] = fault
                _log.warning("%s %s refused: %s", model_manifest.name, precision, fault)
                if precision == "fp32":
                    raise ParityError(f"{model_manifest.name}, fp32: {fault}")
                continue
            dataclasses.replace(manifest, parity=parity).save(folder)
            written.append(precision)
        if step:
            step.progress(len(precisions), len(precisions), "checked against PyTorch")
    manifest_of_all = PackagesManifest(
        producer="package", inputs=inputs, name=model_manifest.name, precisions=written, refused=refused
    )
    manifest_of_all.save(output_dir)
    return manifest_of_all


def _pytorch_probabilities(
    model: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerFast, texts: list[str], max_length: int
) -> NDArray[np.float32]:
    """Probabilities [n, c] by PyTorch and the checkpoint's own transformers tokenizer: the reference for parity."""
    import torch

    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), 32):
            encoded = tokenizer(
                texts[start : start + 32], padding=True, truncation=True, max_length=max_length, return_tensors="pt",
                return_token_type_ids=False,
            )  # fmt: skip
            rows.append(task.probabilities(model(**encoded).logits.float()).numpy())
    return np.concatenate(rows)


def _parity(
    config: PackageConfig, folder: Path, precision: str, texts: list[str], expected: NDArray[np.float32]
) -> tuple[dict[str, float], str]:
    """Compare the package, run as it is served, with PyTorch; return the figures, and the fault or an empty string."""
    limit = config.options.max_text_bytes
    kept = [index for index, text in enumerate(texts) if len(text.encode()) <= limit]
    found = PackageRuntime(folder).predict([texts[index] for index in kept]).probabilities
    wanted = expected[kept]
    difference = np.abs(found - wanted)
    # INT8 may stray far on a single row; what counts is how far it does on the whole.
    exact = not precision.startswith("int8")
    tolerance = getattr(config, f"{precision.partition('-')[0]}_tolerance")
    measured = float(difference.max() if exact else difference.mean())
    parity = {
        "rows": len(kept),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "agreement": float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
        "tolerance": tolerance,
    }
    if measured <= tolerance:
        return parity, ""
    kind = "largest" if exact else "mean"
    return parity, f"{kind} difference from PyTorch {measured:.2g} exceeds the tolerance {tolerance:.2g}"
