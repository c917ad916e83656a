from __future__ import annotations

import re

import pytest
from test_load_result import result

from stillhouse.loadtest import Step
from stillhouse.loadtest.plot import save_plot

STEPS = [Step(1, result(50.0, [1.0, 2.0]), result(40.0, [3.0])), Step(64, result(90.0, [10.0, 20.0]))]


def words(svg):
    """Texts of an SVG; matplotlib draws them as outlines, each with a comment that says what it is."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


def test_percentiles_concurrencies_and_knee_are_named(tmp_path):
    save_plot([tmp_path / "plot.svg"], STEPS, title="reviews", knee=64)
    drawn = words(tmp_path / "plot.svg")
    for word in ("reviews", "p50", "p95", "p99", "p99, the other server", "64", "knee: 64 at once", "texts a second"):
        assert word in drawn


def test_one_server_has_one_set_of_lines(tmp_path):
    save_plot([tmp_path / "plot.svg"], STEPS[1:], title="reviews", knee=None)
    assert not [word for word in words(tmp_path / "plot.svg") if "other server" in word or "knee" in word]


def test_the_suffix_says_the_format_and_the_same_figures_give_the_same_bytes(tmp_path):
    paths = [tmp_path / "plot.svg", tmp_path / "plot.png"]
    save_plot(paths, STEPS, title="reviews", knee=1)
    first = [path.read_bytes() for path in paths]
    assert first[1].startswith(b"\x89PNG")
    save_plot(paths, STEPS, title="reviews", knee=1)
    assert [path.read_bytes() for path in paths] == first


@pytest.mark.filterwarnings("error")
def test_a_step_without_answers_is_left_out(tmp_path):
    save_plot([tmp_path / "plot.svg"], [*STEPS, Step(128, result(0.0))], title="reviews", knee=1)
    assert "128" not in words(tmp_path / "plot.svg")
