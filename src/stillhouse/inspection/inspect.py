"""Validate all of a run's parameters and its source at once, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from stillhouse.artifacts import digest_json
from stillhouse.data.config import DataConfig
from stillhouse.data.prepare import inspect_source
from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.kubernetes.rendering import rendered_problems
from stillhouse.errors import InputError, Problem, RegistryError
from stillhouse.evaluation.config import EvaluateConfig
from stillhouse.export.config import PackageConfig
from stillhouse.models.candidates import PARAMETER as EXTRA
from stillhouse.models.candidates import parse_candidates
from stillhouse.models.checkpoints import check_reference
from stillhouse.models.students import student_problems
from stillhouse.progress import Step
from stillhouse.redaction import holds_credentials
from stillhouse.registry import LOCK_SUFFIX, MlflowRegistry, RegisterConfig, RegisteredChampion
from stillhouse.serving.repository import ServingOptions
from stillhouse.tasks import TASKS, get_task
from stillhouse.training.config import (
    DistillationSettings,
    DistillConfig,
    FinetuneConfig,
    PruneSettings,
    TrainConfig,
)
from stillhouse.training.scale import ScaleConfig
from stillhouse.versions import step_versions

__all__ = [
    "Inspection",
    "credential_problems",
    "data_config",
    "inspect_run",
    "parameter_problems",
    "problems_of",
    "record_unchanged",
    "run_digest",
    "scale_config",
]

_SHAPELESS = frozenset(
    ("tracking_uri", "experiment", "run_name", "pipeline_run", "deploy_target", "promotion", "significance",
     "serving_namespace", "serving_values", "canary_weight", "canary_minutes", "prometheus_url",
     "rollout_timeout_minutes", "deploy_conflict", "skip_unchanged", "grpc_port", "http_port", "metrics_port",
     "checkpoint_dir", "gpu_type",
     "train_cpu", "train_memory", "node_selector", "tolerations")
)  # fmt: skip
"""Parameters that do not change what a run makes. GPUs and machines do: the batch grows with them."""


@dataclass(frozen=True)
class Inspection:
    """What a run needs to know before its first cached step."""

    fingerprint: str
    """Of the source's present content."""
    versions: dict[str, str]
    """Code version of each kind of cached step."""
    gpus: str
    """GPUs that a training step's own pod needs: none where the training runs in pods of its own."""
    run_digest: str
    """Of all that shapes what the run makes: parameters, the source's content, and code."""
    champion_version: str
    """Registered version to compare with; empty where there is no champion, or it is what this very run makes."""
    champion_digest: str
    """sha256 of its package's manifest; empty where there is nothing to compare with."""
    unchanged: str
    """Why the run may end here, in a sentence; empty where it goes on."""
    candidates: list[str]
    """The extra candidates, each as `NAME=CHECKPOINT`."""

    @property
    def proceed(self) -> str:
        """`yes` or `no`, as a condition of the pipeline reads it."""
        return "no" if self.unchanged else "yes"


def data_config(parameters: Mapping[str, Any]) -> DataConfig:
    """The data step's settings from the pipeline's flat parameters.

    Raises:
        InputError: the task is unknown.
    """
    p = parameters
    schema = get_task(p["task"]).schema(text_column=p["text_column"], label_column=p["label_column"])
    names = ("task", "data", "validation_data", "test_data", "max_train_rows", "max_validation_rows", "max_test_rows",
             "validation_fraction", "test_fraction", "seed")  # fmt: skip
    return DataConfig(schema=schema, **{name: p[name] for name in names})


def _deploy_config(parameters: Mapping[str, Any]) -> DeployConfig:
    return DeployConfig(version="", **{name: parameters[name] for name in _DEPLOY})


def scale_config(parameters: Mapping[str, Any]) -> ScaleConfig:
    """What training asks of a cluster, from the pipeline's flat parameters."""
    return ScaleConfig(**{field.name: parameters[field.name] for field in fields(ScaleConfig)})


def parameter_problems(parameters: Mapping[str, Any], *, checkpoints: bool = True) -> list[Problem]:
    """Everything wrong with the parameters themselves; the source's content is not looked at.

    Args:
        parameters: the pipeline's.
        checkpoints: also look the checkpoints up, which takes a model hub.
    """
    found = credential_problems(parameters, _HARMLESS)
    # No message repeats what holds a password.
    hidden = {problem.where for problem in found}
    p = {**parameters, **{name: value for name, value in _HARMLESS.items() if name in hidden}}
    common = {
        name: p[name]
        for name in ("batch_size", "gradient_accumulation_steps", "max_length", "warmup_ratio", "weight_decay",
                     "evaluations_per_epoch", "early_stopping_patience", "quality_metric", "precision", "seed")
    }  # fmt: skip
    distillation = DistillationSettings(
        hard=p["distill_hard_weight"],
        soft=p["distill_soft_weight"],
        cosine=p["distill_cosine_weight"],
        temperature=p["distill_temperature"],
        word_dropout=p["distill_word_dropout"],
    )
    checks: list[Callable[[], list[Problem]]] = [
        lambda: data_config(p).problems(),
        lambda: _name_problems(p["model_name"]),
        *(
            FinetuneConfig(
                name=role,
                checkpoint=p[role],
                epochs=p[f"{role}_epochs"],
                learning_rate=p[f"{role}_learning_rate"],
                embedding_size=p["albert_embedding_size"],
                layers=p["albert_layers"],
                **common,
            ).problems
            for role in ("teacher", "albert")
        ),
        DistillConfig(
            name="student",
            epochs=p["student_epochs"],
            learning_rate=p["student_learning_rate"],
            student=p["student"],
            layers=p["distill_layers"],
            albert_embedding_size=p["albert_embedding_size"],
            albert_layers=p["albert_layers"],
            distillation=distillation,
            pruning=PruneSettings(
                heads=p["student_prune_heads"],
                ffn=p["student_prune_ffn"],
                sparsity=p["student_sparsity"],
                epochs=p["prune_epochs"],
            ),
            **common,
        ).problems,
        *(
            partial(check_reference, p[role], role, max_length=p["max_length"])
            for role in ("teacher", "albert", "student")
            if checkpoints
        ),
        lambda: _student_problems(p) if checkpoints else [],
        *_extra_checks(p, common, checkpoints=checkpoints),
        PackageConfig(
            served_name=p["model_name"],
            precisions=p["precisions"],
            fp32_tolerance=p["fp32_tolerance"],
            fp16_tolerance=p["fp16_tolerance"],
            int8_tolerance=p["int8_tolerance"],
            calibration_rows=p["calibration_rows"],
            options=ServingOptions(**{field.name: p[field.name] for field in fields(ServingOptions)}),
        ).problems,
        lambda: EvaluateConfig(
            policy=p["policy"],
            min_retention=p["min_retention"],
            quality_metric=p["quality_metric"],
            bootstrap_samples=p["bootstrap_samples"],
            latency_samples=p["latency_samples"],
            throughput_rows=p["throughput_rows"],
            promotion=p["promotion"],
            significance=p["significance"],
            seed=p["seed"],
        ).problems(TASKS.get(p["task"])),
        _deploy_config(p).problems,
        RegisterConfig(model_name=p["model_name"], tracking_uri=p["tracking_uri"], experiment=p["experiment"]).problems,
        scale_config(p).problems,
    ]
    return [*dict.fromkeys([*found, *problems_of(checks)])]


def problems_of(checks: Iterable[Callable[[], Iterable[Problem]]]) -> list[Problem]:
    """What all the checks find, those that raise it included."""
    found: list[Problem] = []
    for check in checks:
        try:
            found.extend(check())
        except InputError as error:
            found.extend(error.problems)
    return found


def _extra_checks(
    parameters: Mapping[str, Any], common: Mapping[str, Any], *, checkpoints: bool
) -> list[Callable[[], list[Problem]]]:
    """What is to be asked of the extra candidates; of the settings of their training also where there are none."""
    candidates, problems = parse_candidates(parameters[EXTRA])
    training = dict(epochs=parameters["extra_epochs"], learning_rate=parameters["extra_learning_rate"], **common)
    checks: list[Callable[[], list[Problem]]] = [lambda: problems, TrainConfig(name=EXTRA, **training).problems]
    for candidate in candidates:
        checks.append(FinetuneConfig(name=candidate.name, checkpoint=candidate.checkpoint, **training).problems)
        if checkpoints:
            checks.append(
                partial(
                    check_reference,
                    candidate.checkpoint,
                    EXTRA,
                    max_length=parameters["max_length"],
                    auto_class=TASKS[parameters["task"]].auto_class if parameters["task"] in TASKS else "",
                )
            )
    return checks


_DEPLOY = ("model_name", "tracking_uri", "deploy_target", "deploy_conflict", "grpc_port", "http_port", "metrics_port",
           "serving_namespace", "serving_values", "canary_weight", "canary_minutes", "prometheus_url",
           "rollout_timeout_minutes")  # fmt: skip
"""Parameters that are fields of `DeployConfig`."""
_HARMLESS = {"data": "demo://reviews", "validation_data": "", "test_data": "", "checkpoint_dir": "s3://hidden"}
"""Locations that a parameter may hold, and what stands in for them."""


def credential_problems(parameters: Mapping[str, Any], names: Iterable[str]) -> list[Problem]:
    """Those of the named parameters that hold a password: parameters are logged, and shown to everyone."""
    remedy = (
        "Leave it out: credentials come from the environment, such as AWS_ACCESS_KEY_ID; on a cluster from a secret "
        "(docs/operations.md)."
    )
    return [
        Problem(name, "holds a user's name or password, and parameters are shown to everyone.", remedy)
        for name in names
        if holds_credentials(str(parameters.get(name) or ""))
    ]


def _student_problems(parameters: Mapping[str, Any]) -> list[Problem]:
    p = parameters
    alone = p["distill_cosine_weight"] > 0 and not (p["distill_soft_weight"] or p["distill_hard_weight"])
    return student_problems(p["student"], p["teacher"], p["distill_layers"], hidden_states_alone=alone)


def _chart_problems(parameters: Mapping[str, Any], found: Sequence[Problem]) -> list[Problem]:
    """What the chart finds wrong with the values for it, where there is helm to ask; else deploying finds it out."""
    if parameters["deploy_target"] != "kubernetes" or any(p.where.startswith("serving_values") for p in found):
        return []
    return rendered_problems(_deploy_config(parameters).kubernetes)


def _name_problems(model_name: str) -> list[Problem]:
    if not model_name.endswith(LOCK_SUFFIX):
        return []
    what = f"{model_name!r} is a name by which the registry keeps deployments apart."
    return [Problem("model_name", what, f"Choose one that does not end in {LOCK_SUFFIX}.")]


def run_digest(parameters: Mapping[str, Any], fingerprint: str, versions: Mapping[str, str]) -> str:
    """Digest (16 hex digits) of all that shapes what a run makes; a parameter counts unless it is known not to."""
    shaping = {name: value for name, value in parameters.items() if name not in _SHAPELESS}
    return digest_json({"parameters": shaping, "fingerprint": fingerprint, "versions": dict(versions)})[:16]


def inspect_run(parameters: Mapping[str, Any], *, step: Step | None = None) -> Inspection:
    """Check every parameter, read the source through once, and look up what is deployed.

    Raises:
        InputError: with everything that is wrong, of the parameters, of the source and of the registry.
    """
    found = parameter_problems(parameters) + scale_config(parameters).machine_problems()
    found += _chart_problems(parameters, found)
    fingerprint = ""
    if not credential_problems(parameters, _HARMLESS):
        try:
            report = inspect_source(data_config(parameters), step=step)
            found.extend(report.problems)
            fingerprint = report.fingerprint
        except InputError as error:
            found.extend(error.problems)
    champion = None
    if not {"tracking_uri", "model_name"} & {problem.where for problem in found}:
        try:
            champion = MlflowRegistry(parameters["tracking_uri"]).champion(parameters["model_name"])
        except RegistryError as error:
            # Every run registers in the end: better to hear of it before the training.
            found.append(Problem("tracking_uri", str(error)))
    if found:
        raise InputError(dict.fromkeys(found))
    versions = step_versions()
    digest = run_digest(parameters, fingerprint, versions)
    # A repeated run would otherwise measure again, beside itself, what it made the first time.
    rival = champion if champion is not None and champion.run_digest != digest else None
    return Inspection(
        fingerprint=fingerprint,
        versions=versions,
        gpus=str(scale_config(parameters).step_gpus),
        run_digest=digest,
        champion_version=rival.version if rival else "",
        champion_digest=rival.digest if rival else "",
        unchanged=_unchanged(champion, fingerprint) if parameters["skip_unchanged"] else "",
        candidates=[str(candidate) for candidate in parse_candidates(parameters[EXTRA])[0]],
    )


def _unchanged(champion: RegisteredChampion | None, fingerprint: str) -> str:
    if champion is None or champion.fingerprint != fingerprint:
        return ""
    return f"The source has not changed since the champion, version {champion.version}, was trained."


def record_unchanged(found: Inspection, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Leave a record of a run that ends at its inspection, and return what its summary shows.

    Args:
        found: an inspection with `unchanged`.
        parameters: the run's, with `experiment`, `run_name` and `pipeline_run`.

    Raises:
        RegistryError: the registry refused, or could not be reached.
    """
    registry = MlflowRegistry(parameters["tracking_uri"])
    registry.record_outcome(
        parameters["pipeline_run"],
        "unchanged",
        found.unchanged,
        experiment=parameters["experiment"],
        run_name=parameters["run_name"],
        tags={"model_name": parameters["model_name"], "dataset_fingerprint": found.fingerprint},
    )
    return {"outcome": "unchanged", "outcome_reason": found.unchanged}
