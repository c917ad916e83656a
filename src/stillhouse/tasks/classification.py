"""Single-sentence classification with any number of labels, exactly one per text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.schema import Column, RowSchema
from stillhouse.tasks.base import Output, PairedTest, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

__all__ = ["Classification", "calibration_error"]


def calibration_error(probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = 15) -> float:
    """Expected calibration error of the predicted class over equal-width confidence bins.

    Args:
        probabilities: [n, c], rows sum to 1.
        labels: [n] label ids.
        bins: number of confidence bins between 0 and 1.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2, equation 3.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of_row = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = 0.0
    for index in range(bins):
        chosen = bin_of_row == index
        if chosen.any():
            gaps += chosen.sum() * abs(float(correct[chosen].mean()) - float(confidence[chosen].mean()))
    return gaps / len(labels)


class Classification(Task):
    """One text column, one label column."""

    name = "classification"
    metric_names = ("accuracy", "macro_f1", "mcc")
    auto_class = "AutoModelForSequenceClassification"
    architecture_suffix = "ForSequenceClassification"
    front_model = Path(__file__).parent / "front_models" / "text_classification.py"

    def schema(self, *, text_column: str, label_column: str) -> RowSchema:
        return RowSchema((Column("text", text_column, "text"), Column("label", label_column, "class")))

    def head_config(self, label_names: Sequence[str]) -> dict[str, Any]:
        return {
            "num_labels": len(label_names),
            "id2label": dict(enumerate(label_names)),
            "label2id": {name: index for index, name in enumerate(label_names)},
            "problem_type": "single_label_classification",
        }

    def encode(
        self, rows: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[str, list[Any]]:
        encoded = tokenizer(
            list(rows["text"]),
            truncation=True,
            max_length=max_length,
            return_token_type_ids=False,
            return_attention_mask=False,
        )
        return {"input_ids": encoded["input_ids"], "labels": list(rows["label"])}

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from stillhouse.objectives.distillation import hard_label_loss

        return hard_label_loss(logits, labels)

    def distillation_loss(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        from stillhouse.objectives.distillation import soft_target_loss

        return soft_target_loss(student_logits, teacher_logits, temperature)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=-1)

    def metrics(self, probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        predicted = probabilities.argmax(axis=1)
        return {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(
                f1_score(labels, predicted, labels=range(probabilities.shape[1]), average="macro", zero_division=0)
            ),
            "mcc": float(matthews_corrcoef(labels, predicted)),
            "calibration_error": calibration_error(probabilities, labels),
        }

    def details(
        self, probabilities: NDArray[np.float32], labels: NDArray[np.int64], label_names: Sequence[str]
    ) -> dict[str, Any]:
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        ids = range(len(label_names))
        predicted = probabilities.argmax(axis=1)
        figures = precision_recall_fscore_support(labels, predicted, labels=ids, zero_division=0)
        table = [
            {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
            for name, p, r, f, n in zip(label_names, *figures, strict=True)
        ]
        return {"table": table, "confusion": confusion_matrix(labels, predicted, labels=ids).tolist()}

    def paired_test(
        self, first: NDArray[np.float32], second: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> PairedTest:
        """McNemar's exact test: rows that just one model has right are as likely to be the one's as the other's.

        Source: McNemar 1947, Psychometrika 12; in its exact form, Dietterich 1998, Neural Computation 10, section 3.1.
        """
        from scipy.stats import binomtest  # type: ignore[import-untyped,unused-ignore]

        right, also_right = (p.argmax(axis=1) == labels for p in (first, second))
        only_first, only_second = int((right & ~also_right).sum()), int((also_right & ~right).sum())
        discordant = only_first + only_second
        p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
        return PairedTest("McNemar's exact test", p_value, only_first, only_second, metrics=("accuracy",))

    def baselines(
        self, train: Mapping[str, Sequence[Any]], test: Mapping[str, Sequence[Any]], label_count: int, seed: int
    ) -> dict[str, NDArray[np.float32]]:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        shares = np.bincount(np.asarray(train["label"]), minlength=label_count) / len(train["label"])
        majority = np.tile(shares.astype(np.float32), (len(test["text"]), 1))
        # Word unigrams and bigrams with sublinear counts: the strong form of this baseline, so that beating it means
        # something. The token pattern keeps one-letter words and punctuation-free negations such as "not".
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
            LogisticRegression(C=10.0, max_iter=1000, random_state=seed),
        )
        model.fit(list(train["text"]), list(train["label"]))
        tf_idf = np.zeros((len(test["text"]), label_count), dtype=np.float32)
        tf_idf[:, model.classes_] = model.predict_proba(list(test["text"]))
        return {"majority": majority, "tf-idf": tf_idf}

    def outputs(self, label_names: Sequence[str]) -> tuple[Output, ...]:
        return (
            Output("PROBABILITIES", "TYPE_FP32", (len(label_names),)),
            Output("LABEL", "TYPE_STRING", (1,)),
        )
