"""The registered model as MLflow runs it, logged as source ("models from code"), never as a pickle.

It goes into the registry beside `stillhouse_runtime.py` (a copy of `stillhouse/serving/runtime.py`) and must import
nothing of Stillhouse, so that the model loads wherever MLflow, numpy, onnxruntime and tokenizers are.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped,unused-ignore]
from mlflow.pyfunc.model import PythonModel

__all__ = ["TextModel"]

_BATCH = 32


class TextModel(PythonModel):
    """Texts in; the label, and the probability of every label in label order, out."""

    # From type hints on `predict` MLflow would make a schema of its own and drop the logged one with its outputs;
    # without them it prints a warning at each load, unless told that they are not wanted.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Open the package."""
        # On the path only while MLflow loads the model, and not when it logs it.
        from stillhouse_runtime import PackageRuntime  # type: ignore[import-not-found]

        self._runtime = PackageRuntime(context.artifacts["package"], threads=0)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Classify the first column of `model_input`: columns `label`, and `probabilities` with a list per row."""
        texts = [str(text) for text in model_input.iloc[:, 0]]
        labels: list[str] = []
        probabilities: list[list[float]] = []
        for start in range(0, len(texts), _BATCH):
            found = self._runtime.predict(texts[start : start + _BATCH])
            labels += found.labels
            probabilities += found.probabilities.tolist()
        return pd.DataFrame({"label": labels, "probabilities": probabilities})


mlflow.models.set_model(TextModel())
