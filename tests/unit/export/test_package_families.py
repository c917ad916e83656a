"""Every family from a checkpoint to a measured package; and XLNet, which cannot be one, measured all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
from family_checkpoints import FAMILIES, POSITIONS, write_checkpoint, write_reviews

from stillhouse.artifacts import EvaluationManifest, ModelManifest, PackagesManifest
from stillhouse.errors import InputError
from stillhouse.evaluation.evaluate import EvaluateConfig, evaluate
from stillhouse.evaluation.pytorch import CheckpointRuntime
from stillhouse.export import PackageConfig
from stillhouse.export.package import package_model
from stillhouse.progress import Step
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.training import FinetuneConfig, steps

pytestmark = pytest.mark.slow

CONFIG = PackageConfig(served_name="reviews", int8_tolerance=0.2)
TRICKY = [
    "fine", "", "a <s>dull</s> lovely film </s>", "The staff were rude and the room was filthy. " * 20,
    "[SEP] <pad> [PAD] <sep>", "großartig, wörds not in the vocabulary ☂", "lovely " * (POSITIONS - 2),
]  # fmt: skip


class Made:
    """A dataset, and of each family a trained model and its packages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dataset = write_reviews(root / "dataset")
        texts = pq.read_table(self.dataset / "train.parquet")["text"].to_pylist()
        for family in (*FAMILIES, "xlnet"):
            checkpoint = write_checkpoint(root / "checkpoints" / family, family, texts)
            # Retention needs a teacher, which is what the smallest of them plays.
            config = FinetuneConfig(
                name="teacher" if family == "minilm" else family, checkpoint=str(checkpoint), epochs=1,
                learning_rate=5e-3, batch_size=4, max_length=POSITIONS, evaluations_per_epoch=1,
            )  # fmt: skip
            steps.finetune(config, dataset_dir=self.dataset, output_dir=self.model(family))
            package_model(
                CONFIG, model_dir=self.model(family), dataset_dir=self.dataset, output_dir=self.packages(family),
                required=family == "minilm",
            )  # fmt: skip

    def model(self, family: str) -> Path:
        return self.root / "models" / family

    def packages(self, family: str) -> Path:
        return self.root / "packages" / family


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    yield Made(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_its_package_answers_as_pytorch_does(made: Made, family: str):
    model = ModelManifest.load(made.model(family))
    assert model.family == ("bert" if family == "minilm" else family)
    assert model.metrics["accuracy"] > 0.8
    packages = PackagesManifest.load(made.packages(family))
    assert (packages.unservable, packages.refused, packages.precisions) == ("", {}, ["fp32", "int8"])
    known = CheckpointRuntime(made.model(family), threads=1)
    served = PackageRuntime(made.packages(family) / "fp32")
    expected = np.concatenate([known.predict([text]).probabilities for text in TRICKY])
    # All in one request, so that the short ones are filled up beside the long ones.
    assert np.abs(served.predict(TRICKY).probabilities - expected).max() < 1e-4
    assert np.abs(expected - expected.mean(axis=0)).max() > 0.1, "the texts are not told apart at all"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_package_takes_what_triton_warms_it_up_with(made: Made, family: str):
    """Zeros for ids and for the mask, of one token and of as many as there can be."""
    (path,) = made.packages(family).glob("int8/triton/*-encoder/1/model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {(node.name, node.type) for node in session.get_inputs()} == {
        ("input_ids", "tensor(int64)"), ("attention_mask", "tensor(int64)")
    }  # fmt: skip
    for shape in ((1, 1), (1, 16), (3, POSITIONS)):
        zeros = np.zeros(shape, dtype=np.int64)
        (probabilities,) = session.run(["probabilities"], {"input_ids": zeros, "attention_mask": zeros})
        assert np.isfinite(probabilities).all() and probabilities.shape == (shape[0], 2)


def test_xlnet_is_trained_and_its_packaging_refused_without_a_failure(made: Made, tmp_path: Path):
    assert ModelManifest.load(made.model("xlnet")).metrics["accuracy"] > 0.8
    packages = PackagesManifest.load(made.packages("xlnet"))
    packages.verify(made.packages("xlnet"))
    assert (packages.precisions, packages.refused) == ([], {})
    assert packages.unservable.startswith("xlnet models cannot be packaged: ")
    with pytest.raises(InputError, match="xlnet models cannot be packaged"):
        package_model(CONFIG, model_dir=made.model("xlnet"), dataset_dir=made.dataset, output_dir=tmp_path / "packages")


def test_what_fails_to_export_is_refused_with_the_error(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel for this\nand much more")

    monkeypatch.setattr("torch.onnx.export", fail)
    arguments = {"model_dir": made.model("bart"), "dataset_dir": made.dataset}
    packages = package_model(CONFIG, **arguments, output_dir=tmp_path / "extra", required=False)
    assert packages.unservable == "the export failed (RuntimeError: no kernel for this)."
    with pytest.raises(RuntimeError, match="no kernel"):
        package_model(CONFIG, **arguments, output_dir=tmp_path / "student")


def test_parity_of_an_extra_candidate_is_no_failure_either(made: Made, tmp_path: Path):
    config = PackageConfig(served_name="reviews", precisions="fp32", fp32_tolerance=1e-12)
    packages = package_model(
        config, model_dir=made.model("minilm"), dataset_dir=made.dataset, output_dir=tmp_path, required=False
    )
    assert "difference from PyTorch" in packages.unservable and packages.precisions == []


def test_all_are_measured_side_by_side_and_xlnet_is_never_chosen(made: Made):
    families = ["minilm", *(family for family in FAMILIES if family != "minilm"), "xlnet"]
    evaluation = evaluate(
        EvaluateConfig(policy="quality", bootstrap_samples=200, latency_samples=10, throughput_rows=32, threads=1),
        dataset_dir=made.dataset,
        packages=[made.packages(family) for family in families],
        output_dir=made.root / "evaluation",
        step=Step("evaluate"),
    )
    assert [(c["name"], c["precision"]) for c in evaluation.candidates] == [
        (name, precision) for name in ("teacher", *families[1:-1]) for precision in ("fp32", "int8")
    ]
    (xlnet,) = evaluation.unservable
    assert (xlnet["name"], xlnet["family"]) == ("xlnet", "xlnet")
    assert xlnet["metrics"]["accuracy"] > 0.8 and 0 < xlnet["retention"] <= 1.3
    assert "latency_ms" not in xlnet
    assert evaluation.choice["name"] != "xlnet"
    assert evaluation.inputs["packages_xlnet"] == PackagesManifest.digest(made.packages("xlnet"))
    folder = made.root / "evaluation"
    columns = pq.read_table(folder / "predictions.parquet").column_names
    assert {"xlnet pytorch", "roberta fp32", "modernbert int8"} <= set(columns)
    assert xlnet["reason"] in (folder / "report.html").read_text()
    assert EvaluationManifest.load(folder).unservable == evaluation.unservable
