from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from tiny_artifacts import write_dataset

from stillhouse.artifacts import DatasetManifest, EvaluationManifest, ModelManifest, PackageManifest, sha256_file
from stillhouse.errors import InputError, RegistryError
from stillhouse.evaluation.table import chosen
from stillhouse.registry import MlflowRegistry, RegisteredVersion

PREDICT = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
texts = ["test0w5 test0w6", "test1w7"]
listed, framed = model.predict(texts), model.predict(pd.DataFrame({"text": texts}))
assert not [name for name in sys.modules if name.split(".")[0] == "stillhouse"]
try:
    import stillhouse
    raise SystemExit("stillhouse must not be importable here")
except ImportError:
    pass
print(json.dumps([listed.to_dict("list"), framed.to_dict("list")]))
"""


INITIALISE = """
import sys
from stillhouse.registry import MlflowRegistry
MlflowRegistry(sys.argv[1]).initialise()
"""


def client(uri: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def stored(store, suffix: str) -> Path:
    """The one file of the registered models whose path ends so."""
    (found,) = [
        p for p in (store.root / "state" / "mlartifacts" / "models").rglob("*") if p.as_posix().endswith(suffix)
    ]
    return found


@pytest.mark.slow
def test_three_processes_may_initialise_at_once(tmp_path: Path) -> None:
    database = tmp_path / "not" / "there" / "mlflow.db"
    command = [sys.executable, "-c", INITIALISE, f"sqlite:///{database}"]
    processes = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(process.wait(), process.communicate()[1]) for process in processes]
    assert [code for code, _ in ends] == [0, 0, 0], ends
    assert MlflowRegistry(f"sqlite:///{database}").models() == []


def test_version_carries_its_lineage(registered) -> None:
    store, version = registered
    assert (version.version, version.reused) == ("1", False)
    evaluation = EvaluationManifest.load(store.evaluation)
    winner = chosen(evaluation)
    package = store.paths[winner["name"]] / winner["precision"] / "package.json"
    tags = store.registry.tags(store.name, "1")
    assert tags["manifest_digest"] == sha256_file(package)
    assert tags["dataset_digest"] == DatasetManifest.digest(store.paths["dataset"])
    assert tags["evaluation_digest"] == EvaluationManifest.digest(store.evaluation)
    for folder in store.models:
        assert tags[f"model_digest.{ModelManifest.load(folder).name}"] == ModelManifest.digest(folder)
    assert tags["deployable"] == "true" and tags["policy"] == "memory" and tags["precision"] == "int8"
    assert tags["reason"] == evaluation.choice["reason"]
    assert store.registry.get_alias(store.name, "challenger") == "1"
    assert store.registry.get_alias(store.name, "champion") is None


def test_one_run_with_a_nested_run_for_each_candidate_and_baseline(registered) -> None:
    store, version = registered
    tracking = client(store.uri)
    run = tracking.get_run(version.run_id)
    assert run.info.run_name == "first run" and run.info.status == "FINISHED"
    assert run.data.params["data"] == "demo://reviews"
    assert run.data.metrics["accuracy"] == chosen(EvaluationManifest.load(store.evaluation))["metrics"]["accuracy"]
    nested = tracking.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{version.run_id}'")
    assert {child.info.run_name for child in nested} == {
        "teacher fp32",
        "teacher int8",
        "student fp32",
        "student int8",
        "albert fp32",
        "baseline majority",
        "baseline tf-idf",
    }
    student = next(child for child in nested if child.info.run_name == "student int8")
    assert student.data.params["train.epochs"] == "1" and student.data.metrics["validation_accuracy"] == 0.9
    assert student.data.metrics["p95_ms"] > 0 and student.info.status == "FINISHED"
    names = {file.path for file in tracking.list_artifacts(version.run_id)}
    assert {"evaluation.json", "report.html", "dataset.json", "models"} <= names


def test_artifacts_stay_beside_the_database_and_none_is_a_pickle(registered) -> None:
    store, _ = registered
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".bin", ".joblib"}]
    assert not [path for path in files if path.read_bytes()[:2] == b"\x80\x04"]
    assert {path.relative_to(store.root).parts[0] for path in files} == {"state"}
    assert {"MLmodel", "model.onnx", "evaluation.json"} <= {path.name for path in files}
    # Neither the rows of the dataset nor the evaluation's known answers leave for the registry.
    assert not [path for path in files if path.name in {"smoke.json", "predictions.parquet", "test.parquet"}]


@pytest.mark.slow
def test_loads_back_where_stillhouse_is_not(registered, tmp_path: Path) -> None:
    store, _ = registered
    # A bare environment but for the installed packages, less an editable stillhouse.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    script = f"import sys\nsys.path = [p for p in sys.path if p != {str(store_source())!r}]\n"
    script += "sys.meta_path = [f for f in sys.meta_path if '__editable__' not in repr(f)]\n" + PREDICT
    done = subprocess.run(
        [sys.executable, "-c", script, store.uri, f"models:/{store.name}@challenger"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "type hints" not in done.stderr
    listed, framed = json.loads(done.stdout)
    assert listed == framed
    assert listed["label"] == ["negative", "positive"]
    assert [round(sum(row), 5) for row in listed["probabilities"]] == [1.0, 1.0]
    assert listed["probabilities"][0][0] > 0.7


def store_source() -> Path:
    return Path(__file__).resolve().parents[3] / "src"


def evaluation_with(store, folder: Path, choice: dict) -> Path:
    """The evaluation with another choice, as an artifact of its own."""
    shutil.copytree(store.evaluation, folder)
    replace(EvaluationManifest.load(folder), choice=choice).save(folder)
    return folder


def test_the_same_package_is_one_version(store, tmp_path: Path) -> None:
    first = store.register()
    again = store.register()
    assert again == RegisteredVersion(store.name, "1", first.run_id, True)
    experiment = client(store.uri).get_experiment_by_name("stillhouse").experiment_id
    assert len(client(store.uri).search_runs([experiment], "attributes.run_name != ''")) == 8

    # Another evaluation chooses it again: a run of its own, the same version, the present reasons.
    choice = EvaluationManifest.load(store.evaluation).choice
    later = store.register(
        evaluation_dir=evaluation_with(store, tmp_path / "later", choice | {"reason": "Still best."})
    )
    assert (later.version, later.reused) == ("1", True) and later.run_id != first.run_id
    tags = store.registry.tags(store.name, "1")
    assert tags["reason"] == "Still best." and tags["evaluation_run_id"] == later.run_id

    # Another package is another version, and the challenger now; this one must not be rolled out.
    other = choice | {"name": "albert", "precision": "fp32", "deployable": False, "undeployable_reason": "Too weak."}
    version = store.register(evaluation_dir=evaluation_with(store, tmp_path / "other", other))
    assert (version.version, version.reused) == ("2", False)
    tags = store.registry.tags(store.name, "2")
    assert (tags["deployable"], tags["undeployable_reason"]) == ("false", "Too weak.")
    assert store.registry.get_alias(store.name, "challenger") == "2"
    assert [row["version"] for row in store.registry.models()] == ["2", "1"]


def test_aliases_move_and_uris_resolve(store) -> None:
    registry = store.registry
    store.register()
    registry.set_alias(store.name, "champion", "1")
    assert registry.resolve(f"models:/{store.name}@champion") == (store.name, "1")
    assert registry.resolve(f"models:/{store.name}/1") == (store.name, "1")
    (row,) = registry.models()
    assert row["aliases"] == ["challenger", "champion"] and row["deployable"] and row["precision"] == "int8"
    registry.delete_alias(store.name, "champion")
    registry.delete_alias(store.name, "champion")
    assert registry.get_alias(store.name, "champion") is None
    with pytest.raises(RegistryError, match=r"no alias 'champion'\. It has challenger"):
        registry.resolve(f"models:/{store.name}@champion")
    with pytest.raises(RegistryError, match=r"no version 9. It has: 1\."):
        registry.set_alias(store.name, "champion", "9")
    with pytest.raises(RegistryError, match=f"no model 'other'. It has: {store.name}"):
        registry.resolve("models:/other/1")
    for uri in ("reviews", "models:/reviews", "models:/reviews/latest", f"runs:/x/{store.name}"):
        with pytest.raises(RegistryError, match="not the URI of a registered model"):
            registry.resolve(uri)


def test_fetched_package_is_the_one_that_was_evaluated(registered, tmp_path: Path) -> None:
    store, _ = registered
    target = tmp_path / "release" / "1"
    assert store.registry.fetch_package(store.name, "1", target) == target
    assert sha256_file(target / "package.json") == store.registry.tags(store.name, "1")["manifest_digest"]
    PackageManifest.load(target).verify(target)
    assert [path.name for path in target.parent.iterdir()] == ["1"]
    # Again into the same folder: it is there already.
    assert store.registry.fetch_package(store.name, "1", target) == target
    next(target.rglob("tokenizer.json")).write_text("{}")
    with pytest.raises(RegistryError, match=r"tokenizer\.json was altered"):
        store.registry.fetch_package(store.name, "1", target)


def test_altered_files_are_refused_by_name(store, tmp_path: Path) -> None:
    store.register()
    stored(store, "/model.onnx").write_bytes(b"altered")
    stored(store, "/tokenizer.json").unlink()
    (stored(store, "/model.py").parent / "extra.py").write_text("")
    with pytest.raises(RegistryError) as caught:
        store.registry.fetch_package(store.name, "1", tmp_path / "release")
    message = str(caught.value)
    assert "model.onnx was altered" in message and "tokenizer.json is missing" in message
    assert "extra.py is not in the manifest" in message and "Do not serve it" in message
    assert not (tmp_path / "release").exists()
    assert not list(tmp_path.glob(".release*"))


def test_altered_file_with_a_manifest_made_to_fit_is_refused_by_the_tag(store, tmp_path: Path) -> None:
    store.register()
    stored(store, "/model.onnx").write_bytes(b"altered")
    package = stored(store, "/package.json").parent
    manifest = PackageManifest.load(package)
    manifest.save(package)
    PackageManifest.load(package).verify(package)
    with pytest.raises(RegistryError, match=r"package\.json: has sha256 .* where the version's tag says"):
        store.registry.fetch_package(store.name, "1", tmp_path / "release")


def test_lost_artifacts_are_reported(store, tmp_path: Path) -> None:
    store.register()
    shutil.rmtree(store.root / "state" / "mlartifacts" / "models")
    with pytest.raises(RegistryError, match=f"files of version 1 of {store.name} are gone"):
        store.registry.fetch_package(store.name, "1", tmp_path / "release")


def test_failure_on_the_way_leaves_a_failed_run_and_no_version(store) -> None:
    (store.root / "state" / "mlartifacts").write_text("in the way")
    with pytest.raises(RegistryError, match=f"Could not register {store.name}"):
        store.register()
    tracking = client(store.uri)
    (run,) = tracking.search_runs([tracking.get_experiment_by_name("stillhouse").experiment_id])
    assert run.info.status == "FAILED"
    assert store.registry.models() == []
    (store.root / "state" / "mlartifacts").unlink()
    assert store.register().version == "1"


def test_a_version_that_others_made_is_not_served(store, tmp_path: Path) -> None:
    tracking = client(store.uri)
    tracking.create_registered_model("foreign")
    tracking.create_model_version("foreign", "file:///somewhere")
    with pytest.raises(RegistryError, match="was not registered by Stillhouse"):
        store.registry.fetch_package("foreign", "1", tmp_path / "release")
    assert store.registry.models() == []


def test_artifacts_that_do_not_belong_together_register_nothing(store, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", rows=12)
    with pytest.raises(InputError) as caught:
        store.register(dataset_dir=other, model_name="another-name")
    assert {problem.where for problem in caught.value.problems} == {"dataset", "model_name"}
    packages = tmp_path / "packages"
    winner = EvaluationManifest.load(store.evaluation).choice
    shutil.copytree(store.paths[winner["name"]], packages)
    manifest = PackageManifest.load(packages / winner["precision"])
    (packages / winner["precision"] / "note.txt").write_text("built again")
    manifest.save(packages / winner["precision"])
    with pytest.raises(InputError, match="not the package that was evaluated"):
        store.register(packages=[packages])
    with pytest.raises(InputError, match="not among the packages given"):
        store.register(packages=[])
    assert store.registry.models() == []
    assert client(store.uri).get_experiment_by_name("stillhouse") is None


def test_settings_of_the_process_are_put_back(store) -> None:
    before = mlflow.get_tracking_uri()
    store.register()
    assert mlflow.get_tracking_uri() == before and mlflow.active_run() is None


@pytest.mark.slow
def test_a_server_serves_as_well_as_a_file(server: str, new_store, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    store.uri, store.registry = server, MlflowRegistry(server)
    first = store.register()
    assert store.register() == RegisteredVersion(store.name, "1", first.run_id, True)
    target = store.registry.fetch_package(*store.registry.resolve(f"models:/{store.name}@challenger"), tmp_path / "1")
    PackageManifest.load(target).verify(target)
    assert list((tmp_path / "kept").rglob("model.onnx"))
