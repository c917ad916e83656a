from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_artifacts import SERVED, evaluate_tiny, write_dataset, write_packages

from stillhouse.artifacts import DatasetManifest, EvaluationManifest, sha256_file
from stillhouse.errors import InputError
from stillhouse.evaluation import evaluate as evaluate_module
from stillhouse.evaluation.evaluate import (
    EvaluateConfig,
    _baseline_rows,
    confusion_matrix,
    evaluate,
    scalar_metrics,
)
from stillhouse.evaluation.report import MATRIX_CLASSES, render_report
from stillhouse.evaluation.table import COMPACT, chosen, columns, table_rows
from stillhouse.progress import Step
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.tasks import get_task

Evaluated = tuple[EvaluationManifest, Path]


def entry(manifest: EvaluationManifest, name: str, precision: str) -> dict:
    return next(c for c in manifest.candidates if (c["name"], c["precision"]) == (name, precision))


def test_every_candidate_is_measured_and_the_smallest_good_one_chosen(evaluated: Evaluated) -> None:
    manifest, _ = evaluated
    pairs = [(c["name"], c["precision"]) for c in manifest.candidates]
    assert pairs == [
        ("teacher", "fp32"),
        ("teacher", "int8"),
        ("student", "fp32"),
        ("student", "int8"),
        ("albert", "fp32"),
    ]
    assert entry(manifest, "teacher", "fp32")["metrics"]["accuracy"] == 1.0
    assert entry(manifest, "albert", "fp32")["retention"] < 0.97
    # Both INT8 packages are of the same size; the teacher's is the better one, or they are equals.
    assert manifest.choice["precision"] == "int8" and manifest.choice["deployable"]
    assert chosen(manifest)["bytes"] == min(c["bytes"] for c in manifest.candidates if c["retention"] >= 0.97)
    assert entry(manifest, "teacher", "int8")["speedup_vs_teacher"] == 1.0


def test_figures_are_those_of_the_packages_own_answers(evaluated: Evaluated, tiny: dict[str, Path]) -> None:
    manifest, _ = evaluated
    test = pq.read_table(tiny["dataset"] / "test.parquet").to_pydict()
    answers = PackageRuntime(tiny["albert"] / "fp32").predict(test["text"])
    names = ["negative", "positive"]
    right = sum(names[label] == found for label, found in zip(test["label"], answers.labels, strict=True))
    albert = entry(manifest, "albert", "fp32")
    assert albert["metrics"]["accuracy"] == pytest.approx(right / 120)
    assert albert["retention"] == pytest.approx(right / 120)
    low, high = albert["interval"]
    assert low < albert["metrics"]["accuracy"] < high
    assert sum(map(sum, albert["details"]["confusion"])) == 120
    assert albert["package_digest"] == sha256_file(tiny["albert"] / "fp32" / "package.json")


def test_baselines_stand_beside_and_lose(evaluated: Evaluated) -> None:
    manifest, _ = evaluated
    assert {b["name"] for b in manifest.baselines} == {"majority", "tf-idf"}
    assert all(b["metrics"]["accuracy"] < 0.7 and len(b["interval"]) == 2 for b in manifest.baselines)


def test_artifact_is_whole_and_carries_known_answers(evaluated: Evaluated, tiny: dict[str, Path]) -> None:
    manifest, folder = evaluated
    manifest.verify(folder)
    assert {"report.html", "smoke.json", "predictions.parquet", "plots/quality-size.svg"} <= set(manifest.files)
    assert manifest.inputs["dataset"] == DatasetManifest.digest(tiny["dataset"])
    assert set(manifest.inputs) == {"dataset", "packages_teacher", "packages_student", "packages_albert"}
    smoke = json.loads((folder / "smoke.json").read_text())
    assert len(smoke) == 16 and {row["label"] for row in smoke} == {"negative", "positive"}
    runtime = PackageRuntime(tiny[manifest.choice["name"]] / manifest.choice["precision"])
    assert runtime.predict([row["text"] for row in smoke]).labels == [row["label"] for row in smoke]
    predictions = pq.read_table(folder / "predictions.parquet").to_pydict()
    hits = [a == b for a, b in zip(predictions["label"], predictions["albert fp32"], strict=True)]
    assert sum(hits) / len(hits) == pytest.approx(entry(manifest, "albert", "fp32")["metrics"]["accuracy"])


def test_what_a_pipeline_shows(evaluated: Evaluated) -> None:
    manifest, _ = evaluated
    metrics = scalar_metrics(manifest)
    assert metrics["accuracy"] == chosen(manifest)["metrics"]["accuracy"] and metrics["deployable"] == 1.0
    assert all(isinstance(value, float) for value in metrics.values())
    labels, matrix = confusion_matrix(manifest)
    assert labels == ["negative", "positive"] and sum(map(sum, matrix)) == 120


def test_table_has_a_line_for_each_candidate_refusal_and_baseline(evaluated: Evaluated) -> None:
    manifest, _ = evaluated
    rows = table_rows(manifest)
    assert [row.kind for row in rows] == ["candidate"] * 5 + ["refused"] + ["baseline"] * 2
    assert sum(row.chosen for row in rows) == 1
    assert all(set(row.cells) == {column.key for column in columns(manifest)} for row in rows)
    assert rows[5].note == "difference 0.31" and rows[5].cells["model"] == "albert"
    assert rows[0].cells["quality"].startswith("1.0000 [1.000, 1.000]")
    assert list(table_rows(manifest, COMPACT)[0].cells) == list(COMPACT)


def test_report_says_the_choice_first_and_escapes_labels(evaluated: Evaluated, tiny: dict[str, Path]) -> None:
    manifest, folder = evaluated
    html = (folder / "report.html").read_text()
    assert html.index("deployable") < html.index("All candidates")
    for fragment in ("keep at least 97.0%", "refused: difference 0.31", "tf-idf", "3 duplicate rows", SERVED):
        assert fragment in html
    assert "http" not in html.replace("http-equiv", "").replace("://www.w3.org", "")

    dataset = DatasetManifest.load(tiny["dataset"])
    evil = "<script>alert(1)</script>"
    winner = chosen(manifest)
    table = [row | {"label": evil} for row in winner["details"]["table"]]
    candidates = [
        c if c is not winner else c | {"details": winner["details"] | {"table": table}} for c in manifest.candidates
    ]
    html = render_report(
        replace(manifest, candidates=candidates),
        replace(dataset, label_names=[evil, "positive"], source={"data": f"{evil}.csv"}),
        title=evil,
        plots={"quality-latency": "<svg/>", "quality-size": "<svg/>"},
    )
    assert evil not in html and html.count("&lt;script&gt;") >= 5


def test_report_lists_confusions_where_a_matrix_would_be_too_large(evaluated: Evaluated, tiny: dict[str, Path]) -> None:
    manifest, _ = evaluated
    count = MATRIX_CLASSES + 1
    matrix = [[10 * (i == j) for j in range(count)] for i in range(count)]
    matrix[3][7] = 5
    table = [{"label": f"intent {i}", "precision": 1.0, "recall": 1.0, "f1": 1.0, "rows": 10} for i in range(count)]
    winner = chosen(manifest)
    details = {"table": table, "confusion": matrix}
    candidates = [c if c is not winner else c | {"details": details} for c in manifest.candidates]
    html = render_report(
        replace(manifest, candidates=candidates),
        DatasetManifest.load(tiny["dataset"]),
        title="intents",
        plots={"quality-latency": "<svg/>", "quality-size": "<svg/>"},
    )
    assert "Most frequent confusions" in html and "33.3%" in html and "Confusion matrix" not in html


def test_rows_over_the_byte_limit_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", rows=60)
    limit = 60
    packages = [write_packages(tmp_path / "teacher", "teacher", precisions=["fp32"], max_text_bytes=limit)]
    manifest = evaluate(
        EvaluateConfig(bootstrap_samples=100, latency_samples=10, throughput_rows=3, threads=1),
        dataset_dir=dataset,
        packages=packages,
        output_dir=tmp_path / "evaluation",
        step=Step("evaluate"),
    )
    lengths = [len(text) for text in pq.read_table(dataset / "test.parquet").to_pydict()["text"]]
    over = sum(length > limit for length in lengths)
    assert 0 < over < 60
    assert manifest.choice["rows_over_limit"] == over and manifest.test_rows == 60 - over
    assert f"{over} test rows are over the byte limit" in (tmp_path / "evaluation" / "report.html").read_text()
    assert manifest.choice["name"] == "teacher"


def test_same_seed_gives_the_same_quality_figures(evaluated: Evaluated, tiny: dict[str, Path], tmp_path: Path) -> None:
    manifest, _ = evaluated
    again = evaluate_tiny(tmp_path, tiny, policy="memory")
    for first, second in zip(manifest.candidates, again.candidates, strict=True):
        assert (first["metrics"], first["interval"], first["details"]) == (
            second["metrics"],
            second["interval"],
            second["details"],
        )


def test_all_problems_of_the_configuration_at_once() -> None:
    config = EvaluateConfig(
        policy="cheap", min_retention=1.2, quality_metric="bleu", bootstrap_samples=5, latency_samples=1, threads=-1
    )
    found = {problem.where for problem in config.problems(get_task("classification"))}
    assert found == {"policy", "min_retention", "quality_metric", "bootstrap_samples", "latency_samples", "threads"}
    assert EvaluateConfig().problems(get_task("classification")) == []


def test_packages_that_do_not_belong_are_refused_together(tiny: dict[str, Path], tmp_path: Path) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(tiny["student"], altered)
    next((altered / "int8").rglob("model.onnx")).write_bytes(b"altered")
    foreign = write_packages(tmp_path / "foreign", "albert", label_names=["ham", "spam"], precisions=["fp32"])
    with pytest.raises(InputError) as caught:
        evaluate(
            EvaluateConfig(),
            dataset_dir=tiny["dataset"],
            packages=[tiny["teacher"], tiny["teacher"], altered, foreign],
            output_dir=tmp_path / "evaluation",
            step=Step("evaluate"),
        )
    message = str(caught.value)
    assert "model.onnx was altered" in message
    assert "teacher fp32 is given twice" in message and "albert fp32 answers other labels" in message
    assert not (tmp_path / "evaluation").exists()


def test_without_the_fp32_teacher_nothing_is_measured(tiny: dict[str, Path], tmp_path: Path) -> None:
    refused = write_packages(tmp_path / "teacher", "teacher", precisions=["int8"], refused={"fp32": "difference 0.2"})
    with pytest.raises(InputError, match=r"FP32 teacher.*It was refused: difference 0.2"):
        evaluate(
            EvaluateConfig(),
            dataset_dir=tiny["dataset"],
            packages=[refused],
            output_dir=tmp_path / "evaluation",
            step=Step("evaluate"),
        )


def test_baselines_of_a_large_train_split_use_a_seeded_part(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "BASELINE_ROWS", 50)
    first, again = (_baseline_rows(tiny["dataset"], 120, seed=1) for _ in range(2))
    train = pq.read_table(tiny["dataset"] / "train.parquet").to_pydict()
    assert first == again and len(first["text"]) == len(first["label"]) == 50
    assert set(zip(first["text"], first["label"], strict=True)) <= set(zip(train["text"], train["label"], strict=True))
    assert _baseline_rows(tiny["dataset"], 50, seed=1) == train
