"""The script behind docs/science.md: its cache, its budget and its marks, and two parts in their shortest form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import papers  # noqa: E402
from papers_study import SCIENCE, Study, mean_and_spread, paired_turns, ratio, with_block  # noqa: E402


def study(tmp_path: Path, **fields: Any) -> Study:
    given: dict[str, Any] = {"part": "parameters", "settings": {}, "minutes": 10.0, "state": tmp_path / "state",
                             "output": tmp_path / "out", "docs": False, **fields}  # fmt: skip
    return Study(**given)


def test_every_part_has_settings_at_each_scale_a_function_and_a_place_in_the_docs() -> None:
    text = SCIENCE.read_text(encoding="utf-8")
    for part in papers.PARTS:
        assert all(part in settings for settings in papers.SCALES.values())
        assert f"def {part}(study: Study)" in (ROOT / "benchmarks" / f"{papers.PARTS[part]}.py").read_text("utf-8")
        assert "new text" in with_block(text, part, "new text")
        assert f"papers.py {part}`" in text


def test_a_block_is_replaced_and_nothing_else() -> None:
    text = "a\n<!-- papers:x -->\nold\n<!-- /papers:x -->\nb\n<!-- papers:y -->\n<!-- /papers:y -->\n"
    once = with_block(text, "x", "new\n")
    assert once == text.replace("old", "\nnew\n")
    assert with_block(once, "x", "new\n") == once
    with pytest.raises(ValueError, match="no marks"):
        with_block(text, "z", "new")


def test_results_are_made_once_for_each_key(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": len(made)}

    one = study(tmp_path)
    assert [one.result("r", {"a": a}, make)["value"] for a in (1, 1, 2, 1)] == [1, 1, 2, 1]
    assert study(tmp_path).result("r", {"a": 2}, make)["value"] == 2


def test_a_folder_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    def fail(content: Path) -> None:
        content.mkdir()
        (content / "half").touch()
        raise RuntimeError("cut off")

    one = study(tmp_path)
    with pytest.raises(RuntimeError):
        one.artifact("a", {}, fail)
    folder = one.artifact("a", {}, lambda content: content.mkdir())
    assert not (folder / "content" / "half").exists()
    assert one.artifact("a", {}, fail) == folder


def test_the_budget_scales_down_and_says_so(tmp_path: Path) -> None:
    one = study(tmp_path)
    assert one.fit("steps", 1000, 0.1, minutes=10) == 1000
    assert one.scaled == []
    assert one.fit("steps", 1000, 6.0, minutes=10) == 100
    assert one.fit("steps", 1000, 6.0, minutes=10) == 100
    assert one.scaled == [f"to the budget of {one.minutes:g} minutes: steps: 100 of 1,000, to fit 10 minutes"]


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = study(tmp_path)
    one.table(["Model", "Value"], [["a|b", "1"]])
    one.claim("is high", 0.5, low=0.4)
    one.claim("is low", 0.5, high=0.4)
    one.bars("plot", "Title", ["a", "b"], {"x": [1.0, None]}, "unit")
    one.write(1.0)
    text = (tmp_path / "out" / "parameters.md").read_text(encoding="utf-8")
    assert (
        "| a\\|b | 1 |" in text and "Holds: is high" in text and "**Fails**: is low" in text and "](plot.svg)" in text
    )
    body = json.loads((tmp_path / "out" / "parameters.json").read_text(encoding="utf-8"))
    assert [claim["holds"] for claim in body["claims"]] == [True, False]
    assert "FAILS  is low" in capsys.readouterr().out
    assert (tmp_path / "out" / "plot.svg").is_file()


def test_turns_and_ratios() -> None:
    import time

    times = paired_turns({"slow": lambda: time.sleep(0.004), "fast": lambda: time.sleep(0.001)}, rounds=3, seconds=0.02)
    assert {name: len(rounds) for name, rounds in times.items()} == {"slow": 3, "fast": 3}
    assert 1.5 < ratio(times, "slow", "fast") < 8
    assert ratio({"a": [1.0, 100.0, 3.0], "b": [1.0, 50.0, 1.0]}, "a", "b") == 2.0


def test_spread() -> None:
    assert mean_and_spread([0.5]) == "0.5000"
    assert mean_and_spread([1.0, 3.0], 1) == "2.0 ± 1.4"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "unknown: nonsense"),
        (["--budget", "0"], "--budget: give minutes above 0"),
        (["--docs", "--scale", "quick"], "mean nothing"),
    ],
)
def test_what_is_refused(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["papers.py", *arguments])
    with pytest.raises(SystemExit) as end:
        papers.main()
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_the_first_part_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["papers.py", "parameters", "--output", str(tmp_path / "out")])
    assert papers.main() == 0
    assert "| albert-xxlarge | 235M | 222.6M | -5.3% |" in (tmp_path / "out" / "parameters.md").read_text("utf-8")


@pytest.mark.slow
def test_a_part_that_pretrains_runs_and_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from papers_study import DATA

    if not (DATA / "wiki_en").is_dir():
        pytest.skip(f"the corpus is not at {DATA}")
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["papers.py", "sentences", "--scale", "quick", "--budget", "1"])
    assert papers.main() == 0
    assert "pretrained-sentences-sop: made in" in capsys.readouterr().out
    table = (tmp_path / "papers" / "tables" / "sentences.md").read_text(encoding="utf-8")
    assert "| NSP | " in table and " 86.5 |" in table and "knowing nothing gives 50%" in table
    assert papers.main() == 0
    assert "made in" not in capsys.readouterr().out
    assert (tmp_path / "papers" / "tables" / "sentences.md").read_text(encoding="utf-8") == table
