"""The champion's package, measured beside the new ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_artifacts import evaluate_tiny, write_packages

from stillhouse.artifacts import EvaluationManifest, PackagesManifest
from stillhouse.evaluation.packages import load_champion
from stillhouse.evaluation.table import table_rows

pytestmark = pytest.mark.slow


def as_champion(folder: Path, packages: Path | None, precision: str = "int8", refused: str = "") -> Path:
    """A `packages` artifact named champion, as `fetch_champion` writes it."""
    folder.mkdir(parents=True)
    if packages is not None:
        shutil.copytree(packages / precision, folder / precision)
    PackagesManifest(
        producer="fetch_champion",
        name="champion",
        precisions=[precision] if packages else [],
        refused={"package": refused} if refused else {},
    ).save(folder)
    return folder


def evaluated(root: Path, tiny: dict[str, Path], champion: Path, **settings: Any) -> EvaluationManifest:
    return evaluate_tiny(root, tiny, champion_dir=champion, policy="memory", **settings)


def test_it_is_one_more_candidate_but_not_one_to_choose(tiny: dict[str, Path], tmp_path: Path) -> None:
    # Smaller than all others, its labels in another order, and wrong on 8 of 20 words of each label.
    made = write_packages(
        tmp_path / "made", "student", precisions=["int8"], wrong={"int8": 8}, label_names=("negative", "positive")
    )
    turned = tmp_path / "turned"
    shutil.copytree(made, turned)
    champion = as_champion(tmp_path / "champion", _turned_labels(turned))
    manifest = evaluated(tmp_path, tiny, champion, champion_version="3")
    found = next(c for c in manifest.candidates if c["name"] == "champion")
    assert (found["version"], found["origin"], found["precision"]) == ("3", "student", "int8")
    albert = next(c for c in manifest.candidates if c["name"] == "albert")
    assert found["metrics"] == pytest.approx(albert["metrics"])  # it is wrong on the same words
    assert found["speedup_vs_teacher"] > 0 and found["retention"] < 0.97
    assert manifest.choice["name"] != "champion"
    promotion = manifest.choice["promotion"]
    assert (promotion["decision"], promotion["champion_version"]) == ("promote", "3")
    assert promotion["difference"] > 0.2 and promotion["p_value"] < 0.001
    assert "packages_champion" in manifest.inputs

    rows = table_rows(manifest)
    assert "champion v3" in [row.cells["model"] for row in rows]
    html = (tmp_path / "evaluation" / "report.html").read_text()
    assert "Against the champion" in html and promotion["reason"] in html.replace("&#39;", "'")
    assert "champion v3" in html and "McNemar" in html
    assert "champion v3 int8" in (tmp_path / "evaluation" / "plots" / "quality-size.svg").read_text()
    columns = pq.read_table(tmp_path / "evaluation" / "predictions.parquet").column_names
    assert "champion int8" in columns


def _turned_labels(packages: Path) -> Path:
    """The same packages with their label names, and the encoder's columns, the other way round."""
    import onnx
    from onnx import numpy_helper

    from stillhouse.artifacts import PackageManifest

    folder = packages / "int8"
    for encoder in folder.rglob("model.onnx"):
        model = onnx.load(str(encoder))
        (weights,) = [entry for entry in model.graph.initializer if entry.name == "weights"]
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[:, ::-1].copy(), "weights"))
        onnx.save(model, str(encoder))
    for settings in folder.rglob("settings.json"):
        body = json.loads(settings.read_text())
        body["label_names"] = ["positive", "negative"]
        settings.write_text(json.dumps(body))
    manifest = json.loads((folder / "package.json").read_text())
    manifest["label_names"] = ["positive", "negative"]
    (folder / "package.json").write_text(json.dumps(manifest))
    PackageManifest.load(folder).save(folder)
    return packages


def test_without_a_champion_everything_is_as_before(tiny: dict[str, Path], tmp_path: Path) -> None:
    manifest = evaluated(tmp_path, tiny, as_champion(tmp_path / "champion", None))
    assert {c["name"] for c in manifest.candidates} == {"teacher", "student", "albert"}
    assert manifest.choice["promotion"]["decision"] == "promote"
    assert "packages_champion" not in manifest.inputs


def test_one_that_cannot_be_compared_is_listed_with_the_reason(tiny: dict[str, Path], tmp_path: Path) -> None:
    foreign = write_packages(tmp_path / "foreign", "student", precisions=["fp32"], label_names=["ham", "spam"])
    champion = as_champion(tmp_path / "champion", foreign, "fp32")
    manifest = evaluated(tmp_path, tiny, champion, champion_version="7")
    promotion = manifest.choice["promotion"]
    assert promotion["decision"] == "keep" and "its labels are others" in promotion["reason"]
    (row,) = [row for row in table_rows(manifest) if row.kind == "incomparable"]
    assert row.cells["model"] == "champion v7" and "ham" in row.note
    assert "cannot be compared: its labels" in (tmp_path / "evaluation" / "report.html").read_text()


def _unknown_format(folder: Path) -> None:
    body = json.loads((folder / "fp32" / "package.json").read_text())
    (folder / "fp32" / "package.json").write_text(json.dumps(body | {"format": "stillhouse/package/v9"}))


def _broken_encoder(folder: Path) -> None:
    next((folder / "fp32").rglob("model.onnx")).write_bytes(b"of another age")


@pytest.mark.parametrize(
    ("spoil", "reason"), [(_unknown_format, "format is not understood"), (_broken_encoder, "does not run any more")]
)
def test_what_this_release_cannot_use_is_no_error(
    tiny: dict[str, Path], tmp_path: Path, spoil: Any, reason: str
) -> None:
    from stillhouse.artifacts import DatasetManifest

    champion = as_champion(tmp_path / "champion", tiny["student"], "fp32")
    spoil(champion)
    PackagesManifest.load(champion).save(champion)
    dataset = DatasetManifest.load(tiny["dataset"])
    package, why = load_champion(champion, dataset, ["test0w1"], 1)
    assert package is None and reason in why
    # The same where it was seen when it was fetched.
    fetched = as_champion(tmp_path / "fetched", None, refused="its format is not understood.")
    assert load_champion(fetched, dataset, ["test0w1"], 1) == (None, "its format is not understood.")


def test_one_that_refuses_test_rows_cannot_be_compared(tiny: dict[str, Path], tmp_path: Path) -> None:
    from stillhouse.artifacts import DatasetManifest

    champion = as_champion(tmp_path / "champion", tiny["student"], "fp32")
    package, why = load_champion(champion, DatasetManifest.load(tiny["dataset"]), ["short", "x" * 1001], 1)
    assert package is None and "more than 1,000 bytes, which 1 test rows are" in why
