"""What the `register` step writes to MLflow: one run, nested runs per candidate, and a model version with lineage."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as distribution_version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import (
    DatasetManifest,
    EvaluationManifest,
    ModelManifest,
    PackageManifest,
    PackagesManifest,
    sha256_file,
)
from stillhouse.errors import InputError, ManifestError, Problem
from stillhouse.evaluation.evaluate import scalar_metrics
from stillhouse.evaluation.table import chosen
from stillhouse.progress import Step
from stillhouse.registry.tracking import uri_problems
from stillhouse.serving.repository import name_problems

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "CHALLENGER",
    "PACKAGE_PATH",
    "TAG_PREFIX",
    "RegisterConfig",
    "RegisterInputs",
    "RegisteredVersion",
    "check_inputs",
    "log_and_register",
    "log_parameters",
]

TAG_PREFIX = "stillhouse."
"""Before the name of every tag that Stillhouse sets."""
PACKAGE_PATH = "artifacts/package"
"""Where the package stands inside a registered model's files."""
CHALLENGER = "challenger"
"""Alias of what was registered last; the alias `champion` is moved by a successful rollout."""

_HERE = Path(__file__).parent
_RUNTIME = _HERE.parent / "serving" / "runtime.py"
_REQUIREMENTS = ("numpy", "onnxruntime", "tokenizers")
_PARAM_LIMIT = 6000
_BATCH_LIMIT = 100


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """Names in the registry."""

    model_name: str
    """Registered name, which is also the served name."""
    tracking_uri: str
    """Address of MLflow, as `sqlite:///PATH/mlflow.db` or `http(s)://…`."""
    experiment: str = "stillhouse"
    """MLflow experiment that runs are written to."""
    run_name: str = ""
    """Name of the MLflow run; MLflow makes one up where it is empty."""
    pipeline_run: str = ""
    """What the orchestrator calls the run; tagged, so that what came of the run can be found by it."""
    run_digest: str = ""
    """Digest of all that shapes what the run makes; tagged, so that a later run knows whether it makes the same."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Parameters of the pipeline run, logged with it. Must hold no secrets."""

    def problems(self) -> list[Problem]:
        """Everything wrong with the values."""
        found = [*name_problems(self.model_name), *uri_problems(self.tracking_uri)]
        if not self.experiment.strip():
            found.append(Problem("experiment", "is empty.", "Give the name of an MLflow experiment."))
        return found


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry."""

    name: str
    version: str
    run_id: str
    """The MLflow run that logged its evaluation."""
    reused: bool
    """Whether this very package was a version before, so that no new one was made."""


@dataclass(frozen=True)
class RegisterInputs:
    """The artifacts, read and found to belong together."""

    dataset: DatasetManifest
    dataset_dir: Path
    evaluation: EvaluationManifest
    evaluation_dir: Path
    evaluation_digest: str
    package: PackageManifest
    package_dir: Path
    package_digest: str
    models: dict[str, tuple[ModelManifest, Path, str]]
    """Manifest, folder and digest by the candidate's role."""


def check_inputs(
    config: RegisterConfig, dataset_dir: Path, packages: Sequence[Path], models: Sequence[Path], evaluation_dir: Path
) -> RegisterInputs:
    """Read and verify all artifacts.

    Raises:
        InputError: a name is at fault, a file was altered, or the evaluation is of other packages or another dataset.
    """
    problems = config.problems()
    try:
        dataset = DatasetManifest.load(dataset_dir)
        evaluation = EvaluationManifest.load(evaluation_dir)
        evaluation.verify(evaluation_dir)
        found = {
            manifest.name: (manifest, folder) for folder in packages for manifest in [PackagesManifest.load(folder)]
        }
        named = {
            manifest.name: (manifest, Path(folder), ModelManifest.digest(folder))
            for folder in models
            for manifest in [ModelManifest.load(folder)]
        }
    except ManifestError as error:
        raise InputError([*problems, *error.problems]) from None
    digest = DatasetManifest.digest(dataset_dir)
    if evaluation.inputs.get("dataset") != digest:
        what = "the evaluation was made on another dataset than the one given."
        problems.append(Problem("dataset", what, "Evaluate again, or give the dataset that was evaluated on."))
    name, precision = evaluation.choice["name"], evaluation.choice["precision"]
    if name not in found:
        what = f"the chosen candidate {name} {precision} is not among the packages given."
        raise InputError([*problems, Problem("packages", what, "Give the packages that were evaluated.")])
    package_dir = Path(found[name][1]) / precision
    try:
        package = PackageManifest.load(package_dir)
        package.verify(package_dir)
    except ManifestError as error:
        raise InputError([*problems, *error.problems]) from None
    package_digest = sha256_file(package_dir / PackageManifest.filename())
    if package_digest != chosen(evaluation)["package_digest"]:
        what = f"{name} {precision} is not the package that was evaluated (package.json differs)."
        problems.append(Problem("packages", what, "Evaluate again."))
    if package.served_name != config.model_name:
        what = f"{config.model_name!r} is not the name the package serves, {package.served_name!r}."
        problems.append(Problem("model_name", what, "Package again under the name to be registered."))
    if problems:
        raise InputError(problems)
    return RegisterInputs(
        dataset=dataset,
        dataset_dir=dataset_dir,
        evaluation=evaluation,
        evaluation_dir=evaluation_dir,
        evaluation_digest=EvaluationManifest.digest(evaluation_dir),
        package=package,
        package_dir=package_dir,
        package_digest=package_digest,
        models=named,
    )


def _tags(config: RegisterConfig, inputs: RegisterInputs, run_id: str) -> dict[str, str]:
    """Everything about a version that a rollout or a reader asks for, without opening its files."""
    evaluation, package = inputs.evaluation, inputs.package
    entry, choice = chosen(evaluation), evaluation.choice
    promotion = choice["promotion"]
    tags: dict[str, Any] = {
        "manifest_digest": inputs.package_digest,
        "dataset_digest": evaluation.inputs["dataset"],
        "dataset_fingerprint": inputs.dataset.fingerprint,
        "evaluation_digest": inputs.evaluation_digest,
        "evaluation_run_id": run_id,
        **{f"model_digest.{role}": digest for role, (_, _, digest) in inputs.models.items()},
        **{f"packages_digest.{k.removeprefix('packages_')}": v for k, v in evaluation.inputs.items() if k != "dataset"},
        "version": package.stillhouse_version,
        "task": package.task,
        "candidate": package.name,
        "precision": package.precision,
        "family": package.family,
        "policy": evaluation.policy,
        "reason": choice["reason"],
        "deployable": "true" if choice["deployable"] else "false",
        "undeployable_reason": choice["undeployable_reason"],
        "promotion": promotion["decision"],
        "promotion_reason": promotion["reason"],
        "run_digest": config.run_digest,
        "metric": evaluation.metric,
        "quality": entry["metrics"][evaluation.metric],
        "retention": entry["retention"],
        "p95_ms": entry["latency_ms"]["p95"],
        "bytes": package.bytes,
    }
    return {TAG_PREFIX + name: str(value) for name, value in tags.items()}


def _run_tags(config: RegisterConfig, version: str) -> dict[str, str]:
    """What a run's record has besides: whose it is, and what came of it so far."""
    tags = {
        "pipeline_run": config.pipeline_run,
        "model_name": config.model_name,
        "model_version": version,
        "outcome": "registered",
        "outcome_reason": f"Version {version} is registered.",
    }
    return {TAG_PREFIX + name: value for name, value in tags.items()}


def log_parameters(client: MlflowClient, run_id: str, parameters: Mapping[str, Any]) -> None:
    """Write a run's parameters, each cut where the server would refuse it, in as few requests as it takes."""
    from mlflow.entities import Param

    params = [Param(name, str(value)[:_PARAM_LIMIT]) for name, value in parameters.items()]
    for start in range(0, len(params), _BATCH_LIMIT):
        client.log_batch(run_id, params=params[start : start + _BATCH_LIMIT])


def _log(client: MlflowClient, run_id: str, parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Parameters and metrics of a run."""
    import time

    from mlflow.entities import Metric

    log_parameters(client, run_id, parameters)
    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(name, float(value), now, 0) for name, value in metrics.items()])


def _log_candidates(client: MlflowClient, experiment: str, parent: str, inputs: RegisterInputs) -> None:
    """A nested run for each candidate, whether it can be served or not, and each baseline."""
    evaluation = inputs.evaluation
    served = [(f"{entry['name']} {entry['precision']}", entry) for entry in evaluation.candidates]
    unservable = [(f"{entry['name']} pytorch", entry) for entry in evaluation.unservable]
    baselines = [(f"baseline {entry['name']}", entry) for entry in evaluation.baselines]
    for name, entry in (*served, *unservable, *baselines):
        run_id = client.create_run(experiment, run_name=name, tags={"mlflow.parentRunId": parent}).info.run_id
        parameters: dict[str, Any] = {"name": entry["name"]}
        metrics = {**entry["metrics"], "retention": entry["retention"]}
        metrics |= dict(zip(("interval_low", "interval_high"), entry["interval"], strict=True))
        if "latency_ms" in entry:
            parameters |= {key: entry[key] for key in ("precision", "family", "parameters", "bytes", "package_digest")}
            metrics |= {f"{name}_ms": value for name, value in entry["latency_ms"].items()}
            metrics |= {f"parity_{name}": value for name, value in entry["parity"].items()}
            metrics |= {"rows_per_second": entry["throughput"], "peak_memory_mb": entry["peak_memory_mb"]}
        elif "reason" in entry:
            parameters |= {key: entry[key] for key in ("family", "parameters")}
            parameters |= {"precision": "pytorch", "unservable_reason": entry["reason"]}
        model = inputs.models.get(entry["name"])
        if model is not None:
            parameters |= {"recipe": model[0].recipe, "model_digest": model[2]}
            parameters |= {f"train.{key}": value for key, value in model[0].hyperparameters.items()}
            metrics |= {f"validation_{key}": value for key, value in model[0].metrics.items()}
        _log(client, run_id, parameters, metrics)
        client.set_terminated(run_id)


def _log_files(client: MlflowClient, run_id: str, inputs: RegisterInputs) -> None:
    """The evaluation and the manifests; not the test rows, which belong to the dataset."""
    for name in ("evaluation.json", "report.html"):
        client.log_artifact(run_id, str(inputs.evaluation_dir / name))
    client.log_artifact(run_id, str(inputs.dataset_dir / DatasetManifest.filename()))
    for role, (_, folder, _) in inputs.models.items():
        client.log_artifact(run_id, str(folder / ModelManifest.filename()), f"models/{role}")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _log_model(mlflow: ModuleType, run_id: str, inputs: RegisterInputs) -> Any:
    """Log the package as a pyfunc model made of source code and plain files."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    signature = ModelSignature(
        # One column without a name: a list of strings fits it, and so does a data frame with one column of any name.
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(Array(DataType.double), "probabilities")]),
    )
    with tempfile.TemporaryDirectory(prefix="stillhouse-register-") as name:
        work = Path(name)
        # Under fixed names, whatever the folder of the artifact is called. MLflow refuses symbolic links.
        shutil.copytree(inputs.package_dir, work / "package", copy_function=_link)
        shutil.copyfile(_RUNTIME, work / "stillhouse_runtime.py")
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(_HERE / "pyfunc_model.py"),
                artifacts={"package": str(work / "package")},
                code_paths=[str(work / "stillhouse_runtime.py")],
                signature=signature,
                pip_requirements=[f"{name}=={distribution_version(name)}" for name in _REQUIREMENTS],
            )
            mlflow.log_metrics(scalar_metrics(inputs.evaluation), model_id=info.model_id)
    return info


def log_and_register(
    mlflow: ModuleType,
    client: MlflowClient,
    config: RegisterConfig,
    inputs: RegisterInputs,
    experiment: str,
    existing: Any | None,
    step: Step,
) -> RegisteredVersion:
    """Write the run, and a version unless `existing` (an MLflow model version) is this very package.

    The run ends as FAILED if anything is refused on the way.
    """
    from mlflow.exceptions import MlflowException

    name = config.model_name
    if existing is not None and existing.tags.get(f"{TAG_PREFIX}evaluation_digest") == inputs.evaluation_digest:
        # Nothing is new: the same package under the same evaluation.
        version = str(existing.version)
        run_id = existing.tags.get(f"{TAG_PREFIX}evaluation_run_id", existing.run_id or "")
        client.set_registered_model_alias(name, CHALLENGER, version)
        client.set_model_version_tag(name, version, f"{TAG_PREFIX}run_digest", config.run_digest)
        if config.pipeline_run:
            tags = _tags(config, inputs, run_id) | _run_tags(config, version)
            run = client.create_run(experiment, run_name=config.run_name or None, tags=tags)
            client.set_terminated(run.info.run_id)
        return RegisteredVersion(name, version, run_id, True)
    total = 4
    run = client.create_run(experiment, run_name=config.run_name or None)
    run_id = run.info.run_id
    tags = _tags(config, inputs, run_id)
    try:
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        step.progress(0, total, "logging the run")
        _log(client, run_id, config.parameters, scalar_metrics(inputs.evaluation))
        _log_files(client, run_id, inputs)
        step.progress(1, total, "logging the candidates")
        _log_candidates(client, experiment, run_id, inputs)
        if existing is None:
            step.progress(2, total, "logging the package")
            info = _log_model(mlflow, run_id, inputs)
            step.progress(3, total, "creating the version")
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            created = client.create_model_version(
                name,
                info.model_uri,
                run_id,
                tags=tags,
                description=inputs.evaluation.choice["reason"],
                model_id=info.model_id,  # a server refuses the source without it
            )
            version = str(created.version)
        else:
            version = str(existing.version)
            for key, value in tags.items():
                client.set_model_version_tag(name, version, key, value)
        client.set_registered_model_alias(name, CHALLENGER, version)
        for key, value in _run_tags(config, version).items():
            client.set_tag(run_id, key, value)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    step.progress(total, total, "registered" if existing is None else "already registered")
    return RegisteredVersion(name, version, run_id, existing is not None)
