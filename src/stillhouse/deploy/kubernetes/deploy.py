"""Deploys a registered version to Kubernetes, or leaves everything as it was.

`helm upgrade` with `--wait`, then `helm test`, whose pod asks the release from inside the cluster for answers that are
known; the alias `champion` moves last. What fails is not rolled back by helm's own `--atomic`, which would take the
pods away before they could say what was wrong: their states, events and last lines are read first.

With `canary_weight`, the new version first stands beside the stable one, under the same release: it answers the test
rows, then gets its share of the requests while its metrics are watched, and takes over or is withdrawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from stillhouse.deploy.canary import CanaryWatch, Verdict, watch_canary
from stillhouse.deploy.canary.prometheus import Prometheus
from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.kubernetes.access import cluster_access
from stillhouse.deploy.kubernetes.helm import Helm, HelmError
from stillhouse.deploy.kubernetes.release import HelmRelease, Revision, SmokeTestFailed
from stillhouse.deploy.kubernetes.settings import chart_label
from stillhouse.deploy.kubernetes.values import Pinned, canary_values, pin, release_values, same_release
from stillhouse.deploy.smoke import PLAIN_TEXTS
from stillhouse.deploy.target import Allowed, CanaryWithdrawn, Endpoint, Registry, move_champion, record_service
from stillhouse.errors import InputError, Problem, ServingError
from stillhouse.evaluation.table import CHAMPION
from stillhouse.interrupts import terminable
from stillhouse.progress import Step

__all__ = ["Change", "deploy_kubernetes", "endpoint_of", "opened"]

_GRPC_PORT = 8001


@contextmanager
def opened(config: DeployConfig) -> Iterator[HelmRelease]:
    """The release that a configuration names, and the way to it.

    Raises:
        InputError: there is no helm, or no way to the cluster.
    """
    settings = config.kubernetes
    with cluster_access(settings.namespace, settings.context) as access:
        yield HelmRelease(Helm(access), access, settings.release_name, settings.timeout_s)


def deploy_kubernetes(
    config: DeployConfig,
    *,
    registry: Registry,
    smoke_rows: Sequence[str | Mapping[str, Any]],
    step: Step | None = None,
    allowed: Allowed | None = None,
) -> Endpoint:
    """Serve a registered version on Kubernetes, and call it `champion`; a `stillhouse.deploy.target.Target`.

    Without `smoke_rows`, the texts that the release was tested with last are asked again.
    """
    problems = config.problems()
    if not config.version:
        problems.append(Problem("version", "no version is given.", "Register the model first."))
    if problems:
        raise InputError(problems)
    step = step or Step("deploy")
    with ExitStack() as stack:
        stack.enter_context(terminable())
        release = stack.enter_context(opened(config))
        release.refuse_foreign(release.last(), config.model_name)
        step.progress(0, 4, "fetch the release")
        rows = smoke_rows or _texts_before(release)
        pinned = pin(registry, config.model_name, config.version, rows)
        change = Change(config, registry, release, step, allowed or (lambda: None))
        return change.deploy(pinned)


@dataclass
class Change:
    """One change of what a release serves, and the way back."""

    config: DeployConfig
    registry: Registry
    release: HelmRelease
    step: Step
    allowed: Allowed
    before: Revision | None = None
    """What to go back to; None where nothing served before."""
    _proven: bool = field(default=False, init=False)
    _start: int = field(default=0, init=False)
    """Number that the next revision follows on, where nobody else makes one."""

    def prepare(self) -> Revision | None:
        """Bring the release in order, note what to go back to, and return its newest revision.

        Raises:
            InputError: the release serves something else.
            ServingError: it could not be brought in order.
        """
        name = self.config.model_name
        champion = self.registry.get_alias(name, CHAMPION)
        self.release.refuse_foreign(self.release.last(), name)
        self.allowed()
        self.release.recover(champion)
        self.before = self.release.proven(champion)
        last = self.release.last()
        self._start = (last.number if last else 0) - self.release.changes
        return last

    def deploy(self, pinned: Pinned) -> Endpoint:
        """Serve a version in place of what is served."""
        values = release_values(self.config.kubernetes, pinned)
        last = self.prepare()
        kept = (
            last is not None
            and (last.status, last.chart) == ("deployed", chart_label())
            and same_release(last.values, values)
        )
        verdict = None
        with self.undone_on_failure(f"version {pinned.version}"):
            if not kept:
                if self.config.canary_weight and last is not None and last.version != pinned.version:
                    verdict = self._canary(last, pinned)
                self.step.progress(2, 4, f"roll out version {pinned.version}")
                self.allowed()
                self.release.upgrade(values)
            self.prove(pinned.version)
        self.record(pinned.version)
        self.step.progress(4, 4, "")
        endpoint = endpoint_of(self.release, self.config.model_name, kept=kept, pinned=pinned)
        if verdict is None:
            return endpoint
        told = {"weight": self.config.canary_weight, "reason": verdict.reason, "figures": dict(verdict.figures)}
        return replace(endpoint, details={**endpoint.details, "canary": told})

    def prove(self, version: str) -> None:
        """Test what the release serves; then call it `champion`."""
        self.step.progress(3, 4, "smoke-test from inside the cluster")
        self.release.test()
        self.allowed()
        move_champion(self.registry, self.config.model_name, version)
        self._proven = True

    def record(self, version: str) -> None:
        """Have the registry's record say that a version is in production here."""
        record_service(self.registry, self.config.model_name, version, where=self.release.where)

    def _canary(self, last: Revision, pinned: Pinned) -> Verdict:
        """Try a version on a share of the requests.

        Raises:
            CanaryWithdrawn: it is not good enough.
        """
        config = self.config
        self.step.progress(1, 4, f"version {pinned.version} as a canary")
        if config.prometheus_url:
            Prometheus(config.prometheus_url).now()  # a canary that nobody could judge is not to take any request
        self.allowed()
        self.release.upgrade(canary_values(last.values, config.kubernetes, pinned))
        try:
            self.release.test()
        except SmokeTestFailed as error:
            what = f"Version {pinned.version} was withdrawn as a canary: it failed the replay of test rows, and {error}"
            raise CanaryWithdrawn(what) from None
        replay = f"it answered all {len(pinned.asked)} test rows"
        if not config.prometheus_url:
            return Verdict(True, f"As a canary, {replay}; without a prometheus_url, no metrics were looked at.", {})
        watch = CanaryWatch(
            prometheus_url=config.prometheus_url,
            namespace=self.release.namespace,
            release=self.release.name,
            model=config.model_name,
            stable_version=last.version,
            canary_version=pinned.version,
            minutes=config.canary_minutes,
        )
        verdict = watch_canary(watch, step=self.step, allowed=self.allowed)
        if not verdict.promote:
            what = f"Version {pinned.version} was withdrawn as a canary: {verdict.reason}"
            raise CanaryWithdrawn(what, verdict.figures)
        return verdict

    @contextmanager
    def undone_on_failure(self, what: str) -> Iterator[None]:
        """Have what served before serve again if anything goes wrong inside, an interrupt included.

        Raises:
            ServingError: what went wrong, with what the cluster says of the pods, and what became of the release.
        """
        try:
            yield
        except InputError:  # helm refused it before it changed anything; or a canary was there, and its promotion is
            self._go_back()
            raise
        except CanaryWithdrawn as error:
            if fault := self._go_back():
                raise ServingError(f"{error}\n{fault}") from error
            raise
        except ServingError as error:
            found = [] if isinstance(error, SmokeTestFailed) and error.log_tail else self.release.diagnosis()
            found = [*error.log_tail, *found]
            summary = str(error).split("\n  ", 1)[0] if error.log_tail else str(error)
            fault = self._go_back() or self._stands()
            place = f"{self.release.name} in {self.release.namespace}"
            told = f"{self.config.model_name} {what} was not put in place of what {place} serves: {summary}"
            raise ServingError(f"{told}\n{fault}", found) from error
        except BaseException:
            self._go_back()
            raise

    def _stands(self) -> str:
        if self.before is None:
            return "The release was removed again: nothing served before."
        return f"Version {self.before.version} serves as before."

    def _go_back(self) -> str:
        """Have what served before serve again. Returns what is wrong with it; empty if nothing is."""
        if self._proven:  # interrupted when all was done
            return ""
        before, fault = self.before, ""
        try:
            last = self.release.last()
            if last is not None and last.number > self._start + self.release.changes:
                return f"Revision {last.number} was made by someone else meanwhile, and left alone."
            if before is None:
                if last is not None:
                    self.release.uninstall()
            elif last is None or last.number != before.number or last.status != "deployed":
                self.release.go_back(before)
                self.release.test()
        except (HelmError, SmokeTestFailed) as error:
            to = f"version {before.version} (revision {before.number})" if before else "nothing, as before"
            fault = f"And the way back to {to} failed: {error}"
        return fault


def _texts_before(release: HelmRelease) -> list[str]:
    """The texts that the release was tested with last, for a deployment that comes without rows of its own."""
    last = release.last()
    answers = (last.values.get("smokeTest") or {}).get("answers") if last else None
    return [str(row["text"]) for row in answers or ()] or list(PLAIN_TEXTS)


def endpoint_of(release: HelmRelease, model: str, *, kept: bool = False, pinned: Pinned | None = None) -> Endpoint:
    """Where a release answers, by its name inside the cluster."""
    last = release.last()
    assert last is not None
    host = str(last.values.get("fullnameOverride") or release.name)
    port = (last.values.get("service") or {}).get("port") or _GRPC_PORT
    return Endpoint(
        model=model,
        version=last.version,
        grpc_url=f"{host}.{release.namespace}.svc:{port}",
        kept=kept,
        answers=pinned.answers if pinned else (),
        details={
            "target": "kubernetes",
            "namespace": release.namespace,
            "release": release.name,
            "revision": last.number,
        },
    )
