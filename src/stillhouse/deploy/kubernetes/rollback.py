"""Going back to a version that a release served before, and taking `champion` along."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Protocol

from stillhouse.deploy.by_hand import WAIT_SECONDS, holder
from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.kubernetes.deploy import Change, endpoint_of, opened
from stillhouse.deploy.kubernetes.release import HelmRelease, Revision
from stillhouse.deploy.target import Endpoint, Registry
from stillhouse.errors import InputError, Problem, RegistryError
from stillhouse.evaluation.table import CHAMPION
from stillhouse.interrupts import terminable
from stillhouse.progress import Step
from stillhouse.registry import LockBusy
from stillhouse.registry.lock import DeployLock
from stillhouse.serving.journal import Release, standing

__all__ = ["LockingRegistry", "revision_before", "roll_back_kubernetes"]


class LockingRegistry(Registry, Protocol):
    """What rolling back needs of the model registry."""

    def resolve(self, uri: str) -> tuple[str, str]:
        """Name and version of `models:/NAME/VERSION`; raises where there is none."""

    def deploy_lock(self, name: str, *, holder: str, wait_s: float, step: Step) -> AbstractContextManager[DeployLock]:
        """Be the only one that deploys a model."""


def roll_back_kubernetes(
    config: DeployConfig, *, registry: LockingRegistry, to: str = "", step: Step | None = None
) -> tuple[str, Endpoint]:
    """Make the revision of an earlier version the newest again, test it, and call its version `champion`.

    Args:
        config: which release; its `version` is not looked at.
        registry: where the versions are.
        to: version to go back to; empty for the one that was served before.
        step: told how far the work is.

    Returns:
        The version that was served before, and where the earlier one answers now.

    Raises:
        InputError: there is nothing to go back to; nothing was changed.
        ServingError: the release did not come up or answered wrongly. What was served is served again.
        RegistryError: the registry refused, or a run is deploying this model.
    """
    step, model = step or Step("rollback"), config.model_name
    if problems := config.problems():
        raise InputError(problems)
    with ExitStack() as stack:
        stack.enter_context(terminable())
        release = stack.enter_context(opened(config))
        if release.last() is None:
            what = f"there is no release {release.name} in {release.namespace}."
            raise InputError(Problem("MODEL", what, "Deploy a version first: stillhouse deploy."))
        try:
            lock = stack.enter_context(
                registry.deploy_lock(model, holder=holder("rollback"), wait_s=WAIT_SECONDS, step=step)
            )
        except LockBusy as busy:
            raise RegistryError(f"{busy.holder} is deploying {model}. Roll back when it has ended.") from None
        change = Change(config, registry, release, step, lock.check)
        last = change.prepare()
        before = last.version if last else ""
        target = _target(release, model, before, to)
        _, version = registry.resolve(f"models:/{model}/{target.version}")
        if version == before == registry.get_alias(model, CHAMPION):
            remedy = "`stillhouse releases` lists those that were served before."
            raise InputError(
                Problem("--to", f"version {version} of {model} is served now, and is the champion.", remedy)
            )
        with change.undone_on_failure(f"version {version}"):
            step.progress(1, 3, f"back to version {version}")
            lock.check()
            if target.number != (last.number if last else 0):
                release.go_back(target)
            change.prove(version)
        change.record(version)
        return before, replace(endpoint_of(release, model), kept=version == before)


def _target(release: HelmRelease, model: str, before: str, to: str) -> Revision:
    """The revision to go back to.

    Raises:
        InputError: helm keeps none.
    """
    history = list(release.newest_first())
    found = next((one for one in history if one.version == to and _came_up(one)), None) if to else None
    found = found if to else revision_before(history, before)
    if found is not None:
        return found
    if to:
        what = f"no revision of {release.name} served version {to}."
        raise InputError(Problem("--to", what, f"Deploy it: stillhouse deploy models:/{model}/{to}"))
    what = f"only version {before} of {model} was deployed here, so there is no release to go back to."
    raise InputError(Problem("MODEL", what, "Name a version with --to; `stillhouse models` lists them."))


def revision_before(history: list[Revision], present: str) -> Revision | None:
    """The newest revision of the version that a rollback goes to; None where there is none.

    Args:
        history: revisions, the newest first.
        present: the version that is served.
    """
    revisions = {one.number: one for one in history if _came_up(one)}
    entries = [
        Release(
            at=one.at,
            model=one.model,
            version=one.version,
            package=str(one.number),
            how="rollback" if one.by_rollback else "deploy",
            registered=True,
        )
        for _, one in sorted(revisions.items())
    ]
    stack = [entry for entry in standing(entries) if entry.version != present]
    return revisions[int(stack[-1].package)] if stack else None


def _came_up(revision: Revision) -> bool:
    """Whether a revision served one version to everybody, and passed its test as far as is known."""
    return revision.serves and not revision.canary and revision.tested != "Failed"
