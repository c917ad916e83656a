"""Runs a package inside this process, with no server: for measuring, for known answers, and for MLflow's `predict`.

This file goes along with every registered model as its code, so it imports the standard library, numpy, onnxruntime
and tokenizers only (the last through the package's own front model).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in `stillhouse`, which is not there where MLflow serves
import onnxruntime

__all__ = ["PackageRuntime", "Prediction"]


class Prediction(NamedTuple):
    """Answers for n texts and c labels."""

    probabilities: NDArray[np.float32]
    """[n, c], rows sum to 1."""
    labels: list[str]
    """n names of the most probable label."""


class PackageRuntime:
    """A package's own front model over an ONNX Runtime session on its encoder.

    Args:
        package_dir: folder with `package.json` and `triton/`.
        threads: intra-op threads of the encoder; 0 is one per core.

    Raises:
        FileNotFoundError: the folder is not a package.
    """

    def __init__(self, package_dir: str | os.PathLike[str], *, threads: int = 1) -> None:
        root = Path(package_dir)
        self.manifest: dict[str, Any] = json.loads((root / "package.json").read_text(encoding="utf-8"))
        self.label_names: list[str] = list(self.manifest["label_names"])
        front = _version_folder(root / "triton" / self.manifest["served_name"])
        settings = json.loads((front / "settings.json").read_text(encoding="utf-8"))
        encoder = _version_folder(root / "triton" / settings["encoder"])

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(encoder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._front = _import_source(front / "model.py").load(front, self.encode)

    def encode(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probabilities [n, c] for token ids and attention mask, both [n, s]."""
        outputs = self._session.run(["probabilities"], {"input_ids": ids, "attention_mask": mask})
        return np.asarray(outputs[0], dtype=np.float32)

    def predict(self, texts: Sequence[str | bytes]) -> Prediction:
        """Classify texts exactly as the served model does.

        Raises:
            ValueError: a text is longer than the package's `max_text_bytes`, or is not UTF-8.
        """
        probabilities, labels = self._front(
            # A lone surrogate cannot be encoded: passed on as it is, it is refused as invalid UTF-8.
            [text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass") for text in texts]
        )
        return Prediction(probabilities, labels)


def _version_folder(model: Path) -> Path:
    """The newest version folder of a model; a package holds one, named 1 or after the registered version."""
    versions = [path for path in model.iterdir() if path.name.isdigit()]
    if not versions:
        raise FileNotFoundError(f"{model} holds no version of the model")
    return max(versions, key=lambda path: int(path.name))


def _import_source(path: Path) -> ModuleType:
    """The module at `path`, compiled in memory: an import would leave a byte-code folder inside the package."""
    module = ModuleType("package_front_model")
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module
