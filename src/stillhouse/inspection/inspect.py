"""Validate all of a run's parameters and its source at once, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from stillhouse.data.config import DataConfig
from stillhouse.data.prepare import inspect_source
from stillhouse.deploy.config import DeployConfig
from stillhouse.errors import InputError, Problem
from stillhouse.evaluation.evaluate import EvaluateConfig
from stillhouse.export.config import PackageConfig
from stillhouse.models.checkpoints import check_reference
from stillhouse.progress import Step
from stillhouse.registry.tracking import uri_problems
from stillhouse.tasks import TASKS, get_task
from stillhouse.training.config import DistillationSettings, DistillConfig, FinetuneConfig
from stillhouse.training.scale import ScaleConfig
from stillhouse.versions import step_versions

__all__ = ["Inspection", "data_config", "inspect_run", "parameter_problems", "scale_config"]


@dataclass(frozen=True)
class Inspection:
    """What a run needs to know before its first cached step."""

    fingerprint: str
    """Of the source's present content."""
    versions: dict[str, str]
    """Code version of each kind of cached step."""
    gpus: str
    """GPUs that a training step's own pod needs: none where the training runs in pods of its own."""


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


def scale_config(parameters: Mapping[str, Any]) -> ScaleConfig:
    """What training asks of a cluster, from the pipeline's flat parameters."""
    return ScaleConfig(**{field.name: parameters[field.name] for field in fields(ScaleConfig)})


def parameter_problems(parameters: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with the parameters themselves; the source's content is not looked at."""
    p = parameters
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
            layers=p["distill_layers"],
            distillation=distillation,
            **common,
        ).problems,
        lambda: check_reference(p["teacher"], "teacher"),
        lambda: check_reference(p["albert"], "albert"),
        PackageConfig(
            served_name=p["model_name"],
            precisions=p["precisions"],
            max_text_bytes=p["max_text_bytes"],
            max_batch_size=p["max_batch_size"],
            fp32_tolerance=p["fp32_tolerance"],
            int8_tolerance=p["int8_tolerance"],
        ).problems,
        lambda: EvaluateConfig(
            policy=p["policy"],
            min_retention=p["min_retention"],
            quality_metric=p["quality_metric"],
            bootstrap_samples=p["bootstrap_samples"],
            seed=p["seed"],
        ).problems(TASKS.get(p["task"])),
        DeployConfig(
            model_name=p["model_name"],
            version="",
            tracking_uri=p["tracking_uri"],
            deploy_target=p["deploy_target"],
            grpc_port=p["grpc_port"],
            http_port=p["http_port"],
            metrics_port=p["metrics_port"],
        ).problems,
        lambda: uri_problems(p["tracking_uri"]),
        scale_config(p).problems,
    ]
    found: list[Problem] = []
    for check in checks:
        try:
            found.extend(check())
        except InputError as error:
            found.extend(error.problems)
    return list(dict.fromkeys(found))


def inspect_run(parameters: Mapping[str, Any], *, step: Step | None = None) -> Inspection:
    """Check every parameter and read the source through once.

    Raises:
        InputError: with everything that is wrong, of the parameters and of the source.
    """
    found = parameter_problems(parameters)
    fingerprint = ""
    try:
        report = inspect_source(data_config(parameters), step=step)
        found.extend(report.problems)
        fingerprint = report.fingerprint
    except InputError as error:
        found.extend(error.problems)
    if found:
        raise InputError(dict.fromkeys(found))
    return Inspection(fingerprint, step_versions(), str(scale_config(parameters).step_gpus))
