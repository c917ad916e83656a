"""`stillhouse compare`, without measuring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.comparison.subjects import parse_subjects
from stillhouse.errors import InputError

PAPERS = [
    "bert-base",
    "bert-large",
    "distilbert-base",
    "albert-base",
    "albert-large",
    "albert-xlarge",
    "albert-xxlarge",
]


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["compare", "--json", "--no-measure", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def problems_of(*arguments: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(app, ["compare", *arguments], catch_exceptions=False)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.slow
def test_a_process_of_its_own_writes_nothing_but_one_document_and_needs_no_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillhouse.cli.main", "compare", "--json", "--no-measure", *PAPERS]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path / "home")}
    (tmp_path / "here").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "here", env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert [entry["name"] for entry in json.loads(done.stdout)["models"]] == PAPERS
    assert list((tmp_path / "here").iterdir()) == []


def test_the_papers_models_as_one_json_document() -> None:
    document = run(*PAPERS)
    assert [entry["name"] for entry in document["models"]] == PAPERS
    millions = [round(entry["parameters"] / 1e6, 1) for entry in document["models"]]
    assert millions == [109.5, 335.1, 66.4, 11.7, 17.7, 58.7, 222.6]
    for entry in document["models"]:
        parts = (entry["embedding_parameters"], entry["encoder_parameters"], entry["pooler_parameters"])
        assert sum(parts) == entry["parameters"]
        assert entry["bytes"] == 4 * entry["parameters"]
        assert entry["flops"] > 0
        assert entry["latency_ms"] is None
    assert document["recommendations"]["real-time"]["model"] == "distilbert-base"
    assert document["recommendations"]["memory-constrained"]["model"] == "albert-base"
    assert document["recommendations"]["fast-deployment"]["model"] == "distilbert-base"


def test_configs_and_scratch_names(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    (tmp_path / "mine").mkdir()
    config.save_pretrained(tmp_path / "mine")
    config.to_json_file(tmp_path / "other.json")
    document = run(str(tmp_path / "mine"), str(tmp_path / "other.json"), "scratch://bert-base?num_hidden_layers=1")
    assert [entry["name"] for entry in document["models"]] == ["mine", "other", "bert-base?num_hidden_layers=1"]
    mine, other, base = document["models"]
    assert mine["parameters"] == other["parameters"] < base["parameters"]
    assert all(entry["published"] is None and entry["weights"] == "random" for entry in document["models"])


def test_names_that_collide_are_spelt_out(tmp_path: Path) -> None:
    for run_ in ("one", "two"):
        (tmp_path / run_ / "model").mkdir(parents=True)
        BertConfig().save_pretrained(tmp_path / run_ / "model")
    folders = [str(tmp_path / run_ / "model") for run_ in ("one", "two")]
    subjects, problems = parse_subjects(folders)
    assert [subject.name for subject in subjects] == folders and not problems


def test_tables_recommendations_and_why_counts_differ() -> None:
    models = ("bert-base", "distilbert-base", "albert-base", "albert-xxlarge")
    result = CliRunner().invoke(app, ["compare", "--no-measure", *models], catch_exceptions=False)
    for words in ("222.6 M", "235 M", "real-time: distilbert-base", "memory-constrained: albert-base", "Not measured"):
        assert words in result.output
    assert "What makes up the rest" in " ".join(result.output.split())


def test_the_length_changes_the_arithmetic_alone() -> None:
    short, long = (run("bert-base", "--length", length)["models"][0] for length in ("64", "128"))
    assert short["parameters"] == long["parameters"]
    assert 2 * short["flops"] < long["flops"] < 2.2 * short["flops"]


def test_what_is_written(tmp_path: Path) -> None:
    document = run("bert-base", "albert-base", "--output", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8")) == document
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.json",
        "compare.md",
        "parameters.svg",
        "parameters.png",
    }
    assert "| bert-base | 109.5 M | 110 M |" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"model_type": "nonsense"}', encoding="utf-8")
    (tmp_path / "pickled").mkdir()
    BertConfig().save_pretrained(tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (tmp_path / "file").write_text("", encoding="utf-8")
    found = problems_of(
        "bert-huge", "bert-base", "bert-base", str(tmp_path / "odd.json"), str(tmp_path / "pickled"),
        "scratch://gpt2", "scratch://bert?hidden_sise=3", "scratch://bert?hidden_size=30&num_attention_heads=4",
        "teacher://", "--length", "600", "--batch-size", "0", "--quality-metric", "bleu",
        "--output", str(tmp_path / "file" / "out"),
    )  # fmt: skip
    for words in (
        "MODEL: 'bert-huge' is neither an architecture nor a file or folder",
        "MODEL: 'bert-base' is given 2 times",
        "which transformers does not know",
        "pickled weights are never read",
        "'scratch://gpt2' names no known family",
        "hidden_sise",
        "describes no model",
        "'teacher://' is made in a run",
        "--length: 600 exceeds the 512 positions of 'bert-base'",
        "--batch-size: 0 will not do",
        "--quality-metric: 'bleu'",
        "--output: cannot write",
    ):
        assert any(words in one for one in found), (words, found)


def test_no_model_is_a_problem_too() -> None:
    assert problems_of() == [
        "MODEL: no model is named. Give names such as bert-base, or folders of checkpoints.",
    ]
