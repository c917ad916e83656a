"""Whether a run's version is rolled out, and what came of it: a decision of its own, since most of it is about not to.

A version is deployed if it is deployable and was promoted by the gate, and if the champion that it was compared with
is still the champion once no other run can deploy. Not to deploy is a success: the version stays `challenger`, and the
run's record says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse.artifacts import EvaluationManifest
from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.release import deploy_release
from stillhouse.deploy.target import CanaryWithdrawn
from stillhouse.errors import RegistryError, StillhouseError
from stillhouse.evaluation.table import CHAMPION
from stillhouse.progress import Step
from stillhouse.registry import LockBusy, MlflowRegistry

__all__ = ["WAIT_SECONDS", "Rollout", "roll_out"]

WAIT_SECONDS = 1800.0
"""How long a run waits for another one that is deploying the same model."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What came of a run."""

    outcome: str
    """`registered`, `challenger`, `deployed` or `kept`; see `stillhouse.registry.OUTCOMES`."""
    reason: str
    """Why, in a sentence or two."""
    endpoint: Mapping[str, Any] = field(default_factory=dict)
    """As `deploy_release` tells it; empty where nothing was deployed."""
    canary: Mapping[str, Any] = field(default_factory=dict)
    """Figures of a canary that was withdrawn."""

    def result(self) -> dict[str, Any]:
        """As the run's summary shows it."""
        canary = {"canary": {"figures": dict(self.canary)}} if self.canary else {}
        return {"outcome": self.outcome, "outcome_reason": self.reason, **self.endpoint, **canary}


def roll_out(
    config: DeployConfig,
    *,
    registry: MlflowRegistry,
    evaluation_dir: Path,
    pipeline_run: str,
    step: Step,
    wait_s: float = WAIT_SECONDS,
) -> Rollout:
    """Deploy the version if it may be, and record what came of the run.

    Args:
        config: which version, where, and what to do if another run is deploying.
        registry: where the version is.
        evaluation_dir: the `evaluation` artifact: the gate's decision, and rows whose answers are known.
        pipeline_run: what the orchestrator calls this run.
        step: told how far the work is.
        wait_s: how long to wait for another run at most.

    Raises:
        InputError, ServingError: as `deploy_local`; the run's record says `failed`.
        RegistryError: the registry refused, could not be reached, or gave the lock to another run.
    """
    choice = EvaluationManifest.load(evaluation_dir).choice
    try:
        done = _decide(config, registry, choice, evaluation_dir, pipeline_run, step, wait_s)
    except StillhouseError as error:
        with suppress(RegistryError):
            reason = f"Version {config.version} could not be deployed: {str(error).splitlines()[0]}"
            registry.record_outcome(pipeline_run, "failed", reason)
        raise
    registry.record_outcome(pipeline_run, done.outcome, done.reason)
    return done


def _decide(
    config: DeployConfig,
    registry: MlflowRegistry,
    choice: Mapping[str, Any],
    evaluation_dir: Path,
    pipeline_run: str,
    step: Step,
    wait_s: float,
) -> Rollout:
    promotion, version = choice["promotion"], config.version
    reigns = registry.get_alias(config.model_name, CHAMPION) == version
    if not choice["deployable"] or (promotion["decision"] != "promote" and not reigns):
        return Rollout(outcome="challenger", reason=promotion["reason"])
    if config.deploy_target == "none" and not reigns:
        reason = f"deploy_target is none, so version {version} is registered only. {promotion['reason']}"
        return Rollout(outcome="registered", reason=reason)
    kept = Rollout(outcome="kept", reason=f"Version {version} is the champion, and stays it.")
    if config.deploy_target == "none":
        return kept
    try:
        with registry.deploy_lock(
            config.model_name,
            holder=f"run {pipeline_run}",
            wait_s=wait_s if config.deploy_conflict == "wait" else 0.0,
            step=step,
        ) as lock:
            champion = registry.get_alias(config.model_name, CHAMPION)
            if fault := _overtaken(config, registry, promotion, champion):
                return Rollout(outcome="challenger", reason=fault)
            rows = json.loads((evaluation_dir / "smoke.json").read_text(encoding="utf-8"))
            endpoint = deploy_release(config, registry=registry, smoke_rows=rows, step=step, allowed=lock.check)
    except CanaryWithdrawn as withdrawn:
        return Rollout(outcome="challenger", reason=withdrawn.reason, canary=withdrawn.figures)
    except LockBusy as busy:
        waited = f", for {wait_s / 60:.0f} minutes" if config.deploy_conflict == "wait" else ""
        what = f"Another run, {busy.holder.removeprefix('run ')}, is deploying {config.model_name}{waited}."
        return Rollout(outcome="challenger", reason=f"{what} The next run compares with what it deploys.")
    if champion == version:
        return replace(kept, endpoint=endpoint)
    canary = endpoint.get("canary", {}).get("reason", "")
    return Rollout(outcome="deployed", reason=" ".join(filter(None, [promotion["reason"], canary])), endpoint=endpoint)


def _overtaken(
    config: DeployConfig, registry: MlflowRegistry, promotion: Mapping[str, Any], champion: str | None
) -> str:
    """Why the gate's decision does not hold any more; empty where it does. Asked while the lock is held."""
    if promotion["mode"] == "always" or champion in (None, config.version, promotion["champion_version"]):
        return ""
    assert champion is not None
    own, other = (registry.tags(config.model_name, v).get("run_digest") for v in (config.version, champion))
    if own and own == other:
        return (
            f"Version {champion}, which was made from the same data with the same parameters, is the champion; this "
            "other outcome of chance was not compared with it."
        )
    return f"The champion changed to version {champion} while this run was under way; the next run compares with it."
