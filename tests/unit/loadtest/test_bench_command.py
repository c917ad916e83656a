"""`stillhouse bench serve` around the load itself, against a server in this process; tests/serving has the real one."""

from __future__ import annotations

import json
import sys
import time

import grpc
import pytest
from test_load import texts_of

from stillhouse import loadtest
from stillhouse.cli.main import main
from stillhouse.serving.triton import free_ports

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs the command in this process: its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stillhouse", "bench", "serve", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def quick(url, *more):
    return ("--url", url, "--model", "m", "-c", "1", "--seconds", "1", *more)


def test_everything_wrong_is_told_at_once(bench, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    code, out, err = bench(
        "--url", "x:1", "--model", "m", "-c", "1,two", "--seconds", "nan", "--batch-size", "0", "--timeout", "-1",
        "--texts", str(tmp_path / "blank.txt"),
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert "5 problems" in err
    for words in (
        "'1,two' is no list", "--seconds: nan", "--batch-size: 0", "--timeout: -1", "blank.txt holds no text",
    ):  # fmt: skip
        assert words in err


@pytest.mark.parametrize("levels", ["", "0", "1,,2", "-1", "1.5"])
def test_concurrencies_are_whole_numbers_from_one(bench, levels):
    code, _, err = bench("--url", "x:1", "--model", "m", f"--concurrency={levels}")
    assert code == 2 and "is no list of concurrencies" in err


def test_what_is_no_address_is_told_before_anything_is_tried(bench):
    code, _, err = bench("--url", "http://x", "--against", "localhost", "--model", "m")
    assert code == 2 and "--url: 'http://x' is no address" in err and "--against: 'localhost' is no address" in err


def test_texts_that_cannot_be_read(bench, tmp_path):
    code, _, err = bench("--url", "x:1", "--model", "m", "--texts", str(tmp_path / "absent.txt"))
    assert code == 2 and "cannot read" in err and "No such file" in err
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    code, _, err = bench("--url", "x:1", "--model", "m", "--texts", str(tmp_path / "latin.txt"))
    assert code == 2 and "is not UTF-8" in err


def test_no_endpoint_given_and_no_local_server(bench):
    code, _, err = bench()
    assert code == 2 and "--url and --model" in err and "stillhouse serve" in err


def test_nobody_answers(bench, monkeypatch):
    monkeypatch.setattr("stillhouse.loadtest.load._CONNECT_SECONDS", 0.3)
    code, out, err = bench(*quick(f"127.0.0.1:{free_ports().grpc}"))
    assert (code, out) == (1, "") and "no server answers at 127.0.0.1" in err


def test_an_output_that_cannot_be_is_told_before_the_load(bench, serve, tmp_path):
    (tmp_path / "file").write_text("")
    url, model = serve(lambda number: "7")
    code, _, err = bench(*quick(url, "--output", str(tmp_path / "file")))
    assert code == 2 and "--output: cannot write to" in err
    assert model.requests == []


def test_the_lines_of_the_file_are_what_is_asked(bench, serve, tmp_path):
    (tmp_path / "texts.txt").write_bytes("\ufeffgood\r\n\n größer \r\nbad".encode())
    url, model = serve(lambda number: "7")
    code, _, err = bench(*quick(url, "--texts", str(tmp_path / "texts.txt"), "--batch-size", "3"))
    assert code == 0, err
    assert {tuple(texts_of(request)) for request in model.requests} == {("good", " größer ", "bad")}


def test_made_up_reviews_are_asked_where_no_text_is_given(bench, serve):
    url, model = serve(lambda number: "7")
    assert bench(*quick(url))[0] == 0
    texts = [texts_of(request)[0] for request in model.requests]
    assert len(set(texts)) > 20 and all(" " in text for text in texts)


def test_a_server_that_rejects_everything_ends_with_an_error_and_the_table(bench, serve, tmp_path):
    url, _ = serve(lambda number: grpc.StatusCode.UNAVAILABLE)
    code, out, err = bench(*quick(url, "--output", str(tmp_path)))
    assert code == 1
    assert "UNAVAILABLE" in out and "answered no request" in err
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["knee"] is None and set(document["steps"][0]["errors"]) == {"UNAVAILABLE"}
    assert not (tmp_path / "bench.png").exists()


def test_answers_longer_than_the_measured_time_are_told_with_the_time_to_give(bench, serve, tmp_path):
    url, _ = serve(lambda number: time.sleep(0.7) or "7")
    code, _, err = bench(*quick(url, "--seconds", "0.1", "--output", str(tmp_path)))
    (step,) = json.loads((tmp_path / "bench.json").read_text())["steps"]
    assert step["requests"] == 1 and step["p50"] >= 700
    assert code == 2 and f"the fastest took {step['p50'] / 1000:.1f} s" in err and "--seconds" in err


def test_what_was_measured_stays_when_the_server_goes(bench, serve, tmp_path, monkeypatch):
    monkeypatch.setattr("stillhouse.loadtest.load._CONNECT_SECONDS", 0.3)
    url, _ = serve(lambda number: "7")
    gone = f"127.0.0.1:{free_ports().grpc}"

    def leave_after_one(measure, levels, url, against):
        yield loadtest.Step(levels[0], measure(url, levels[0]))
        measure(gone, levels[1])

    monkeypatch.setattr(loadtest, "ramp", leave_after_one)
    code, out, err = bench(*quick(url), "-c", "1,2", "--output", str(tmp_path))
    assert code == 1 and "no server answers" in err and out == ""
    assert [row["concurrency"] for row in json.loads((tmp_path / "bench.json").read_text())["steps"]] == [1]


def test_without_matplotlib_there_are_figures_and_a_hint(bench, serve, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    url, _ = serve(lambda number: "7")
    code, out, err = bench(*quick(url, "--output", str(tmp_path)))
    assert code == 0 and "◀ knee" in out
    assert "pip install matplotlib" in err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["bench.json"]
    assert "The knee is the last step" not in err  # of one step there is nothing to say


def test_a_knee_at_the_end_of_the_ramp_is_told(bench, serve):
    url, _ = serve(lambda number: time.sleep(0.02) or "7")
    code, out, err = bench(*quick(url), "-c", "1,4")
    assert code == 0 and "The knee is the last step" in err
    lines = [line for line in out.splitlines() if "◀ knee" in line]
    assert len(lines) == 1 and lines[0].split()[0] == "4"


def test_json_is_all_that_standard_output_holds(bench, serve):
    url, _ = serve(lambda number: "7")
    code, out, _ = bench(*quick(url, "--json"))
    document = json.loads(out)
    assert code == 0 and document["settings"]["url"] == url and document["settings"]["texts"] == "demo://reviews"
    assert document["steps"][0]["releases"] == {"7": document["steps"][0]["requests"]}


def test_ratios_stand_beside_the_figures(bench, serve):
    fast, _ = serve(lambda number: "7")
    slow, _ = serve(lambda number: time.sleep(0.2) or "7")
    code, out, _ = bench(*quick(fast, "--against", slow, "--json", "--seconds", "0.5"))
    step = json.loads(out)["steps"][0]
    assert code == 0 and step["throughput_ratio"] > 2 and step["p99_ratio"] < 1
    code, out, _ = bench(*quick(fast, "--against", slow, "--seconds", "0.5"))
    assert f"this server by {slow}" in out and out.count("×") == 2
