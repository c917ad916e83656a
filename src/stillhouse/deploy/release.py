"""Deploying to the target that was asked for, and telling of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.kubernetes.deploy import deploy_kubernetes
from stillhouse.deploy.local import deploy_local
from stillhouse.deploy.target import Allowed, Endpoint, Target
from stillhouse.progress import Step

__all__ = ["deploy_release", "described"]

_TARGETS: Mapping[str, Target] = {"local": deploy_local, "kubernetes": deploy_kubernetes}


def deploy_release(
    config: DeployConfig,
    *,
    registry: Any,
    smoke_rows: Sequence[str | Mapping[str, Any]],
    step: Step | None = None,
    allowed: Allowed | None = None,
) -> dict[str, Any]:
    """Deploy to the configuration's target, and tell it as the run's summary shows it; see `described`.

    Args and raises are those of `stillhouse.deploy.target.Target`.
    """
    deploy = _TARGETS[config.deploy_target]
    return described(deploy(config, registry=registry, smoke_rows=smoke_rows, step=step, allowed=allowed))


def described(endpoint: Endpoint) -> dict[str, Any]:
    """Where a model answers, as JSON values.

    Returns:
        `model`, `version`, `url` (gRPC, `host:port`), `http_url`, `metrics_url`, `kept`, `examples` (`text`, `label`
        and its `probability` of some rows of the smoke test, each label once where there are several), and what only
        one kind of target has.
    """
    first = {answer.label: answer for answer in reversed(endpoint.answers)}
    chosen = [*first.values(), *(answer for answer in endpoint.answers if answer not in first.values())]
    return {
        "model": endpoint.model,
        "version": endpoint.version,
        "url": endpoint.grpc_url,
        "http_url": endpoint.http_url,
        "metrics_url": endpoint.metrics_url,
        "kept": endpoint.kept,
        "examples": [{"text": a.text, "label": a.label, "probability": max(a.probabilities)} for a in chosen[:3]],
        **endpoint.details,
    }
