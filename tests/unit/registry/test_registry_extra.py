"""Extra candidates in the registry: one may be the version, and what cannot be served leaves its figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_artifacts import write_model, write_packages

from stillhouse.artifacts import EvaluationManifest, ModelManifest, PackagesManifest
from stillhouse.evaluation.evaluate import EvaluateConfig, evaluate
from stillhouse.progress import Step


@pytest.mark.slow
def test_an_extra_candidate_is_registered_with_its_lineage(store, tmp_path: Path) -> None:
    dataset = store.paths["dataset"]
    extra = write_packages(tmp_path / "roberta-base", "roberta-base", precisions=["fp32"])
    packages = [*(store.paths[name] for name in ("teacher", "student", "albert")), extra]
    folder = tmp_path / "evaluation"
    measured = evaluate(
        EvaluateConfig(bootstrap_samples=100, latency_samples=10, throughput_rows=32, threads=1),
        dataset_dir=dataset, packages=packages, output_dir=folder, step=Step("evaluate"),
    )  # fmt: skip
    unservable = {"name": "xlnet", "family": "xlnet", "parameters": 1000, "reason": "It does not export.",
                  "metrics": {"accuracy": 0.875}, "interval": [0.8, 0.9], "retention": 0.9}  # fmt: skip
    choice = measured.choice | {"name": "roberta-base", "precision": "fp32"}
    replace(measured, choice=choice, unservable=[unservable]).save(folder)
    extras = [write_model(tmp_path / "models" / name, name, dataset) for name in ("roberta-base", "xlnet")]

    version = store.register(packages=packages, models=[*store.models, *extras], evaluation_dir=folder)
    tags = store.registry.tags(store.name, version.version)
    assert (tags["candidate"], tags["family"]) == ("roberta-base", "roberta-base")
    assert tags["packages_digest.roberta-base"] == PackagesManifest.digest(extra)
    for model in (*store.models, *extras):
        assert tags[f"model_digest.{ModelManifest.load(model).name}"] == ModelManifest.digest(model)

    client = store.registry.client()
    run = client.get_run(version.run_id)
    nested = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{version.run_id}'")
    by_name = {child.info.run_name: child.data for child in nested}
    assert {"roberta-base fp32", "xlnet pytorch"} <= set(by_name)
    xlnet = by_name["xlnet pytorch"]
    assert xlnet.params["unservable_reason"] == "It does not export." and xlnet.params["train.epochs"] == "1"
    assert xlnet.metrics["accuracy"] == 0.875 and "p95_ms" not in xlnet.metrics
    assert EvaluationManifest.load(folder).unservable == [unservable]
