"""What each run of the pipeline leaves behind, and the champion as later runs see it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stillhouse.artifacts import PackageManifest, PackagesManifest, sha256_file
from stillhouse.errors import RegistryError
from stillhouse.progress import Step
from stillhouse.registry import MlflowRegistry, RegisteredChampion, fetch_champion

STEP = Step("fetch-champion")


def fetch(store, folder: Path, **changes: str) -> PackagesManifest:
    tags = store.registry.tags(store.name, "1")
    arguments = {"version": "1", "digest": tags["manifest_digest"]} | changes
    return fetch_champion(store.registry, store.name, **arguments, output_dir=folder, step=STEP)


def test_a_run_is_found_by_what_the_orchestrator_calls_it(store, tmp_path: Path) -> None:
    registry = store.registry
    first = store.register(pipeline_run="run-1", run_digest="abc")
    record = registry.run_record("run-1", tmp_path / "one")
    assert record is not None and record.run_id == first.run_id
    assert (record.outcome, record.model_name, record.version) == ("registered", store.name, "1")
    assert record.tags["promotion"] == "promote" and "No other version is champion" in record.tags["promotion_reason"]
    assert record.evaluation_dir is not None
    assert {path.name for path in record.evaluation_dir.iterdir()} == {"evaluation.json", "report.html"}

    # The same once more: nothing new to log, and yet a record that leads to the same evaluation.
    again = store.register(pipeline_run="run-2", run_digest="abc")
    assert (again.run_id, again.reused) == (first.run_id, True)
    second = registry.run_record("run-2", tmp_path / "two")
    assert second is not None and second.run_id != first.run_id and second.version == "1"
    assert second.evaluation_dir is not None
    assert (tmp_path / "two/evaluation.json").read_bytes() == (tmp_path / "one/evaluation.json").read_bytes()

    registry.record_outcome("run-2", "deployed", "It is better.")
    after = registry.run_record("run-2")
    assert after is not None and (after.outcome, after.reason, after.evaluation_dir) == (
        "deployed",
        "It is better.",
        None,
    )
    assert registry.tags(store.name, "1")["outcome"] == "deployed"
    (row,) = registry.models()
    assert (row["outcome"], row["outcome_reason"]) == ("deployed", "It is better.")
    assert registry.run_record("run-1").outcome == "registered"
    assert registry.run_record("run-3") is None and registry.run_record("no' OR 'id") is None


def test_a_run_that_stops_early_leaves_a_small_record(store, tmp_path: Path) -> None:
    store.registry.record_outcome(
        "run-9", "unchanged", "Nothing has changed.", experiment="nightly", run_name="tonight", tags={"model_name": "m"}
    )
    record = store.registry.run_record("run-9", tmp_path / "none")
    assert record is not None and record.evaluation_dir is None and not (tmp_path / "none").exists()
    assert (record.outcome, record.reason, record.model_name, record.version) == (
        "unchanged",
        "Nothing has changed.",
        "m",
        "",
    )
    run = store.registry.client().get_run(record.run_id)
    assert (run.info.run_name, run.info.status) == ("tonight", "FINISHED")


def test_the_champion_is_known_by_its_tags(store) -> None:
    assert store.registry.champion(store.name) is None
    store.register(run_digest="abc")
    store.registry.set_alias(store.name, "champion", "1")
    tags = store.registry.tags(store.name, "1")
    expected = RegisteredChampion("1", tags["manifest_digest"], "0" * 64, "abc")
    assert store.registry.champion(store.name) == expected


def test_no_registry_and_no_model_mean_no_champion(tmp_path: Path) -> None:
    assert MlflowRegistry(f"sqlite:///{tmp_path}/mlflow.db").champion("reviews") is None
    assert not (tmp_path / "mlflow.db").exists()


def test_a_champion_that_others_registered_is_refused(store) -> None:
    client = store.registry.client()
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "file:///somewhere")
    client.set_registered_model_alias("foreign", "champion", "1")
    with pytest.raises(RegistryError, match="was not registered by Stillhouse"):
        store.registry.champion("foreign")


def test_the_champion_is_fetched_as_packages(registered, tmp_path: Path) -> None:
    store, _ = registered
    manifest = fetch(store, tmp_path / "champion")
    assert (manifest.name, manifest.precisions, manifest.refused) == ("champion", ["int8"], {})
    PackagesManifest.load(tmp_path / "champion").verify(tmp_path / "champion")
    package = tmp_path / "champion" / "int8"
    PackageManifest.load(package).verify(package)
    assert sha256_file(package / "package.json") == store.registry.tags(store.name, "1")["manifest_digest"]


def test_no_champion_is_an_empty_artifact(store, tmp_path: Path) -> None:
    manifest = fetch_champion(store.registry, "reviews", version="", digest="", output_dir=tmp_path / "none", step=STEP)
    assert (manifest.name, manifest.precisions, manifest.refused) == ("champion", [], {})
    PackagesManifest.load(tmp_path / "none").verify(tmp_path / "none")


def test_one_registered_anew_is_not_the_one_that_was_meant(registered, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="registered anew"):
        fetch(registered[0], tmp_path / "champion", digest="0" * 64)


def test_a_format_of_another_release_is_noted_and_lost_files_are_an_error(store, tmp_path: Path) -> None:
    store.register()
    folder = store.root / "state" / "mlartifacts" / "models"
    (manifest,) = folder.rglob("package.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": "stillhouse/package/v9"}))
    digest = sha256_file(manifest)
    store.registry.client().set_model_version_tag(store.name, "1", "stillhouse.manifest_digest", digest)
    found = fetch(store, tmp_path / "champion")
    assert found.precisions == [] and "stillhouse/package/v9" in found.refused["package"]

    shutil.rmtree(folder)
    with pytest.raises(RegistryError, match="are gone"):
        fetch(store, tmp_path / "again")
