"""Retraining that is left alone: what stops early, what is promoted, and what is not, through the command line."""

import csv
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest
from local_runs import Home, Run, kept_ports, set_options

from stillhouse.client import predict_texts
from stillhouse.registry import MlflowRegistry

pytestmark = pytest.mark.slow

GOOD, BAD = ("fine", "great", "lively", "lovely"), ("awful", "bad", "dull", "poor")
OTHER = ("bar", "bed", "food", "room", "service", "staff", "the", "view")
RARE = "lively"
"""Stands in four test rows of 400, and in as many train rows as any other word."""


def sentence(first: str, random: Random) -> str:
    """Six words, the second good and the fifth bad or the other way round; only their places tell the label."""
    second = random.choice(BAD if first in GOOD else GOOD)
    words = [random.choice(OTHER) for _ in range(4)]
    return " ".join([words[0], first, *words[1:3], second, words[3]])


def write_rows(path: Path, firsts: list[str], seed: int, mislabelled: tuple[str, ...] = ()) -> Path:
    """A row for each of `firsts`, the word that decides; rows of a mislabelled word have the wrong label."""
    random = Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for first in firsts:
            positive = (first in GOOD) != (first in mislabelled)
            writer.writerow([sentence(first, random), "positive" if positive else "negative"])
    return path


class Retraining:
    """One model that is trained again and again, each time on what its source holds by then."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home, self.folder = home, folder
        common = [word for word in (*GOOD, *BAD) if word != RARE]
        firsts = [RARE] * 4 + [common[i % len(common)] for i in range(396)]
        ports = kept_ports()
        self.settings = {
            "test_data": write_rows(folder / "test.csv", firsts, seed=1), "max_length": 16,
            "teacher": "scratch://bert?num_hidden_layers=2&hidden_size=64&num_attention_heads=4&intermediate_size=128"
                       "&vocab_size=200",
            "teacher_epochs": 4, "teacher_learning_rate": 1e-3, "student_epochs": 1, "student_learning_rate": 1e-3,
            "albert_epochs": 1, "albert_learning_rate": 1e-3, "albert_embedding_size": 32, "precisions": "fp32",
            "policy": "quality", "model_name": "verdicts", "bootstrap_samples": 500, "latency_samples": 50,
            "grpc_port": ports.grpc, "http_port": ports.http, "metrics_port": ports.metrics,
        }  # fmt: skip

    def source(self, name: str, *mislabelled: str) -> Path:
        """The source as it is at some time, with the wrong labels that are in it then."""
        words = (*GOOD, *BAD)
        firsts = [words[i % len(words)] for i in range(1200)]
        return write_rows(self.folder / f"{name}.csv", firsts, seed=2, mislabelled=mislabelled)

    def at_once(self, *changes: dict[str, Any]) -> list[Run]:
        """Run the pipeline several times at the same time; each must end well."""
        processes = []
        for change in changes:
            options = set_options({**self.settings, **change})
            command = self.home.command("run", "--json", "--preset", "tiny", *options)
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(command, env=self.home.environment, **pipes))
        ends = [process.communicate() for process in processes]
        assert [process.returncode for process in processes] == [0] * len(changes), [error for _, error in ends]
        return [Run(0, out, err, self.home.folder / "runs" / json.loads(out)["run"]) for out, err in ends]

    @property
    def registry(self) -> MlflowRegistry:
        return MlflowRegistry(f"sqlite:///{self.home.folder}/mlflow.db")

    def champion(self) -> str | None:
        return self.registry.get_alias("verdicts", "champion")


def promotion(run: Run) -> dict[str, Any]:
    return run.evaluation()["choice"]["promotion"]


@pytest.fixture(scope="module")
def model(make_home: Callable[[str], Home], tmp_path_factory: pytest.TempPathFactory) -> Retraining:
    """A champion that was trained on wrong labels of two of the eight words, one of which hardly ever occurs."""
    model = Retraining(make_home("retraining"), tmp_path_factory.mktemp("source"))
    (first,) = model.at_once({"data": model.source("first", "lovely", RARE)})
    assert promotion(first)["decision"] == "promote" and first.evaluation()["choice"]["deployable"]
    assert first.result("deploy")["outcome"] == "registered"
    model.registry.set_alias("verdicts", "champion", "1")  # as a rollout does last
    return model


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch, model: Retraining) -> Iterator[list[dict[str, Any]]]:
    """What a webhook is sent."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setitem(model.home.environment, "STILLHOUSE_WEBHOOK_URL", f"http://127.0.0.1:{server.server_port}/")
    yield bodies
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_unchanged_source_stops_the_run_early(model: Retraining, hook: list[dict[str, Any]]):
    settings = {**model.settings, "data": model.folder / "first.csv", "skip_unchanged": "true"}
    run = model.home.run("tiny", **settings)
    assert run.returncode == 0, run.stderr
    assert run.steps("started") == {"inspect-source", "notify"}
    assert run.steps("cached") == set()
    reason = "The source has not changed since the champion, version 1, was trained."
    assert "Unchanged" in run.stdout and reason in run.stdout
    assert "skipped" in run.stderr
    record = json.loads((run.folder / "run.json").read_text())
    assert (record["status"], record["outcome"], record["outcome_reason"]) == ("finished", "unchanged", reason)
    (body,) = hook
    assert (body["state"], body["outcome"], body["outcome_reason"]) == ("SUCCEEDED", "unchanged", reason)
    left = model.registry.run_record(body["pipeline_run"])
    assert left is not None and left.outcome == "unchanged"


def test_neither_a_worse_one_is_promoted_nor_one_better_by_less_than_the_noise(
    model: Retraining, hook: list[dict[str, Any]]
):
    # Wrong labels of one more word; or right ones of the rare word, which four of the 400 test rows hold.
    worse, hardly_better = model.at_once(
        {"data": model.source("worse", "lovely", RARE, "bad"), "deploy_target": "local"},
        {"data": model.source("hardly-better", "lovely"), "deploy_target": "local"},
    )
    found = promotion(worse)
    assert found["difference"] < -0.05 and found["interval"][1] < 0 and "This is worse" in found["reason"]
    found = promotion(hardly_better)
    assert 0 < found["difference"] < 0.03 and found["interval"][0] <= 0 and "not more than noise" in found["reason"]
    assert model.champion() == "1"
    for run in (worse, hardly_better):
        found, version = promotion(run), run.result("register")["version"]
        assert (found["decision"], found["champion_version"]) == ("keep", "1")
        assert run.result("deploy") == {"outcome": "challenger", "outcome_reason": found["reason"]}
        tags = model.registry.tags("verdicts", version)
        assert (tags["outcome"], tags["outcome_reason"]) == ("challenger", found["reason"])
        assert (tags["promotion"], tags["promotion_reason"]) == ("keep", found["reason"])
        (body,) = [body for body in hook if body["model_version"] == version]
        assert body["outcome"] == "challenger" and found["reason"] in body["text"]
        summary = model.home.stillhouse("report", run.folder.name).stdout
        assert "Not promoted" in summary and "champion v1" in summary
        assert "Against the champion" in (Path(run.result("register")["evaluation_dir"]) / "report.html").read_text()
    assert model.registry.get_alias("verdicts", "challenger") in {"2", "3"}


def test_of_two_better_ones_at_once_just_one_is_deployed(model: Retraining):
    """The local Triton server and the lock are real; either run would have been deployed alone."""
    better = {"data": model.source("better"), "deploy_target": "local"}
    runs = {
        run.result("deploy")["outcome"]: run for run in model.at_once({**better, "seed": 42}, {**better, "seed": 43})
    }
    assert set(runs) == {"deployed", "challenger"}
    for run in runs.values():
        found = promotion(run)
        assert (found["decision"], found["champion_version"]) == ("promote", "1")
        assert found["difference"] > 0.05 and found["p_value"] < 0.001
    winner, other = runs["deployed"].result("deploy"), runs["challenger"].result("deploy")
    assert "significantly better" in winner["outcome_reason"]
    version = winner["version"]
    assert model.champion() == version != runs["challenger"].result("register")["version"]
    assert f"The champion changed to version {version} while this run was under way" in other["outcome_reason"]
    assert "url" not in other
    (row,) = predict_texts(winner["url"], "verdicts", ["the lovely bed room dull view"])
    assert (row["LABEL"], row["model_version"]) == ("positive", version)
