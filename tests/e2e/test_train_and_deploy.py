"""The main job as a whole: train, distil, compare, register, serve; then again, and wrong."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from local_runs import CACHED_STEPS, UNCACHED_STEPS, Home, Run, kept_ports, write_reviews

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(make_home: Callable[[str], Home]) -> Home:
    return make_home("main-job")


@pytest.fixture(scope="module")
def settings(home: Home, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A real MiniLM teacher on few rows: enough to beat TF-IDF, which is what allows it to be served."""
    ports = kept_ports()
    return {
        "data": write_reviews(tmp_path_factory.mktemp("source") / "reviews.csv", 1500),
        "text_column": "review", "label_column": "verdict", "model_name": "verdicts", "max_length": 64,
        "teacher_epochs": 3, "student_epochs": 2, "albert_epochs": 0.5, "evaluations_per_epoch": 1,
        "bootstrap_samples": 200, "latency_samples": 50, "throughput_rows": 96,
        "policy": "real-time", "min_retention": 0.8,
        "grpc_port": ports.grpc, "http_port": ports.http, "metrics_port": ports.metrics,
    }  # fmt: skip


@pytest.fixture(scope="module")
def first(home: Home, settings: dict[str, Any]) -> Run:
    run = home.run("demo", **settings)
    assert run.returncode == 0, run.stderr + run.stdout
    return run


def test_every_step_runs_and_the_summary_says_what_came_of_it(first: Run):
    assert first.steps("finished") == CACHED_STEPS | UNCACHED_STEPS
    for text in ("student", "int8", "albert", "tf-idf", "majority", "verdicts version 1", "stillhouse predict"):
        assert text in first.stdout, text
    # kfp's own log lines belong in the log file.
    assert "Executing task" not in first.stdout + first.stderr
    assert "Executing task" in (first.folder / "kfp.log").read_text()


def test_the_evaluation_holds_every_candidate_and_baseline(first: Run):
    evaluation = first.evaluation()
    candidates = {(c["name"], c["precision"]): c for c in evaluation["candidates"]}
    assert set(candidates) == {(n, p) for n in ("teacher", "student", "albert") for p in ("fp32", "int8")}
    assert {b["name"] for b in evaluation["baselines"]} == {"majority", "tf-idf"}
    teacher, student, albert = (candidates[name, "fp32"] for name in ("teacher", "student", "albert"))
    assert (teacher["family"], student["family"], albert["family"]) == ("bert", "distilbert", "albert")
    assert student["parameters"] < 0.8 * teacher["parameters"]
    assert albert["parameters"] < 0.3 * teacher["parameters"]
    assert candidates["albert", "int8"]["bytes"] < 0.35 * albert["bytes"]
    assert evaluation["choice"]["deployable"] is True
    settings = evaluation["choice"]["settings"]
    assert (settings["latency_samples"], settings["throughput_rows"]) == (50, 96)


def test_the_served_model_answers_as_it_was_measured(first: Run, home: Home):
    import pyarrow.parquet as pq

    evaluation = first.evaluation()
    choice = evaluation["choice"]
    measured = next(c for c in evaluation["candidates"]
                    if (c["name"], c["precision"]) == (choice["name"], choice["precision"]))  # fmt: skip
    (dataset,) = home.folder.glob("artifacts/*/prepare-data/dataset")
    rows = pq.read_table(dataset / "test.parquet").to_pydict()
    names = ["negative", "positive"]
    # A plain client: nothing of Stillhouse between the text and the answer.
    client = triton.InferenceServerClient(first.result("deploy")["url"])
    right = 0
    for start in range(0, len(rows["text"]), 16):
        texts = [[text.encode()] for text in rows["text"][start : start + 16]]
        tensor = triton.InferInput("TEXT", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=np.object_))
        answer = client.infer("verdicts", [tensor])
        assert answer.get_response().model_version == "1"
        probabilities, labels = answer.as_numpy("PROBABILITIES"), answer.as_numpy("LABEL")
        assert (probabilities.shape, labels.shape) == ((len(texts), 2), (len(texts), 1))
        assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-4)
        found = [label[0].decode() for label in labels]
        assert found == [names[i] for i in probabilities.argmax(axis=1)]
        right += sum(a == names[b] for a, b in zip(found, rows["label"][start : start + 16], strict=True))
    count = len(rows["text"])
    # Dynamic INT8 rounds by what else is in a batch, so it may waver on as many texts as it differs on from FP32.
    wavering = 1 - measured["parity"]["agreement"] + 1 / count
    assert right / count == pytest.approx(measured["metrics"]["accuracy"], abs=wavering)


def test_the_other_commands_know_the_release(first: Run, home: Home):
    url = first.result("deploy")["url"]
    predicted = home.stillhouse("predict", "The staff were rude and the room was filthy.", "--url", url, "--json")
    assert predicted.returncode == 0, predicted.stderr
    assert '"negative"' in predicted.stdout
    assert "champion" in home.stillhouse("models").stdout
    assert "verdicts" in home.stillhouse("serve", "status").stdout
    assert Path(home.stillhouse("report", "--path").stdout.strip()).is_file()


def test_an_equal_run_executes_nothing_that_can_be_cached(first: Run, home: Home, settings: dict[str, Any]):
    again = home.run("demo", **settings)
    assert again.returncode == 0, again.stderr
    assert again.steps("started") == UNCACHED_STEPS
    assert again.steps("cached") == CACHED_STEPS
    assert again.result("register") | {"run_id": ""} == first.result("register") | {"run_id": "", "reused": True}
    assert again.result("deploy")["kept"] is True  # the release already serves


def test_the_registered_version_loads_back(first: Run, home: Home):
    code = (
        "import mlflow\n"
        f"mlflow.set_tracking_uri('sqlite:///{home.folder}/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/verdicts@champion')\n"
        "print(list(model.predict(['An excellent, warm and generous place.'])['label']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=home.environment)
    assert done.stdout.strip().endswith("['positive']"), done.stderr


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_registered(make_home: Callable[[str], Home], tmp_path: Path):
    home = make_home("wrong")
    source = tmp_path / "reviews.csv"
    source.write_text("review,verdict\nfine,good\n,good\nbad,\n", encoding="utf-8")
    run = home.run(
        "tiny", data=source, text_column="review", label_column="verdict", test_data="/nowhere.csv", policy="best",
        teacher="/no/checkpoint", min_retention=2, model_name="a b", deploy_target="moon",
    )  # fmt: skip
    assert run.returncode == 2
    for part in ("/nowhere.csv", "policy", "teacher", "min_retention", "model_name", "deploy_target", "reviews.csv"):
        assert part in run.stderr, part
    assert "Traceback" not in run.stderr + run.stdout + (run.folder / "kfp.log").read_text()
    assert run.steps("started") <= {"inspect-source", "notify"}
    assert home.stillhouse("models", "--json").stdout.strip() in ("[]", '{"models": []}')
    assert not list(home.folder.glob("artifacts/*/prepare-data"))
