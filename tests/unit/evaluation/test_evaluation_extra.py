"""Candidates beyond the three: in the table, the plots and the report; and those that cannot be served."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tiny_artifacts import write_model, write_packages

from stillhouse.artifacts import DatasetManifest, EvaluationManifest, PackagesManifest
from stillhouse.cli.summary import print_evaluation
from stillhouse.errors import InputError
from stillhouse.evaluation.packages import load_packages
from stillhouse.evaluation.plots import quality_plots
from stillhouse.evaluation.policy import choose
from stillhouse.evaluation.report import render_report
from stillhouse.evaluation.table import COMPACT, columns, table_rows

REASON = "xlnet models cannot be packaged: its attention does not export."


@pytest.fixture
def with_xlnet(evaluated: tuple[EvaluationManifest, Path]) -> EvaluationManifest:
    """An evaluation whose best candidate cannot be served."""
    manifest, _ = evaluated
    metrics = dict.fromkeys(manifest.candidates[0]["metrics"], 1.0)
    entry = {"name": "xlnet", "family": "xlnet", "parameters": 117_000_000, "reason": REASON, "metrics": metrics,
             "interval": [1.0, 1.0], "retention": 1.0}  # fmt: skip
    return replace(manifest, unservable=[entry])


def write_unservable(folder: Path, name: str, dataset: Path) -> Path:
    """A `packages` artifact without a package."""
    write_model(folder / "pytorch", name, dataset)
    PackagesManifest(producer="package", name=name, precisions=[], refused={}, unservable=REASON).save(folder)
    return folder


def test_what_cannot_be_served_stands_in_the_table_with_its_quality_and_the_reason(with_xlnet: EvaluationManifest):
    rows = table_rows(with_xlnet)
    assert [row.kind for row in rows] == ["candidate"] * 5 + ["unservable", "refused"] + ["baseline"] * 2
    row = rows[5]
    assert (row.note, row.chosen) == (REASON, False)
    assert set(row.cells) == {column.key for column in columns(with_xlnet)}
    shown = {key: row.cells[key] for key in ("model", "precision", "retention", "parameters", "p95", "bytes")}
    assert shown == {"model": "xlnet", "precision": "PyTorch", "retention": "100.0%", "parameters": "117.0 M",
                     "p95": "–", "bytes": "–"}  # fmt: skip
    assert list(table_rows(with_xlnet, COMPACT)[5].cells) == list(COMPACT)


def test_report_summary_and_plots_show_it(with_xlnet: EvaluationManifest, tiny: dict[str, Path], tmp_path: Path):
    plots = quality_plots(with_xlnet)
    assert all("xlnet, in PyTorch" in svg.replace("<!-- ", "") for svg in plots.values())
    html = render_report(with_xlnet, DatasetManifest.load(tiny["dataset"]), title="t", plots=plots)
    assert REASON in html and "cannot be served" in html
    with_xlnet.save(tmp_path)
    shown = io.StringIO()
    print_evaluation(Console(file=shown, width=160), tmp_path)
    assert f"xlnet cannot be served: {REASON}" in shown.getvalue()


def test_the_policy_picks_from_every_candidate_and_from_nothing_else(with_xlnet: EvaluationManifest):
    extra = with_xlnet.candidates[0] | {"name": "roberta-base", "bytes": 1, "latency_ms": {"p95": 1e-6}}
    candidates = [*with_xlnet.candidates, extra]
    for policy in ("memory", "real-time", "quality"):
        found = choose(candidates, with_xlnet.baselines, policy, 0.97, "accuracy")
        assert (found.name, found.precision) == ("roberta-base", "fp32")


def test_packages_and_checkpoints_are_read_together(tiny: dict[str, Path], tmp_path: Path):
    dataset = DatasetManifest.load(tiny["dataset"])
    extra = write_packages(tmp_path / "roberta", "roberta", precisions=["fp32"])
    xlnet = write_unservable(tmp_path / "xlnet", "xlnet", tiny["dataset"])
    found = load_packages([tiny["teacher"], extra, xlnet], dataset)
    assert [package.key for package in found.packages] == ["teacher fp32", "teacher int8", "roberta fp32"]
    assert [(one.key, one.reason, one.folder) for one in found.unservable] == [
        ("xlnet pytorch", REASON, xlnet / "pytorch")
    ]
    assert set(found.digests) == {"packages_teacher", "packages_roberta", "packages_xlnet"}


def test_all_that_is_wrong_with_a_checkpoint_is_told(tiny: dict[str, Path], tmp_path: Path):
    dataset = DatasetManifest.load(tiny["dataset"])
    altered = write_unservable(tmp_path / "altered", "altered", tiny["dataset"])
    (altered / "pytorch" / "config.json").write_text("{}")
    twice = write_unservable(tmp_path / "twice", "twice", tiny["dataset"])
    shutil.copytree(twice, tmp_path / "again")
    with pytest.raises(InputError) as caught:
        load_packages([tiny["teacher"], altered, twice, tmp_path / "again"], dataset)
    said = str(caught.value)
    assert "pytorch/config.json was altered" in said and "twice pytorch is given twice" in said
    with pytest.raises(InputError, match="twice pytorch answers other labels"):
        load_packages([tiny["teacher"], twice], replace(dataset, label_names=["a", "b"]))
