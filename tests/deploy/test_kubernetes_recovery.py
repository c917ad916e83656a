"""Going back by hand; and what killed, interrupted and competing deployments leave behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest
from deployed_world import World

from stillhouse.errors import InputError, RegistryError, ServingError
from stillhouse.progress import Step
from stillhouse.registry import MlflowRegistry

pytestmark = pytest.mark.slow


def test_back_and_back_again(world: World) -> None:
    for version in ("1", "2", "3"):
        world.deploy(version)
    before, endpoint = world.roll_back()
    assert (before, endpoint.version, world.state) == ("3", "2", ({"stable": "2"}, "2"))
    before, endpoint = world.roll_back()
    assert (before, endpoint.version, world.state) == ("2", "1", ({"stable": "1"}, "1"))
    with pytest.raises(InputError, match="only version 1 of reviews was deployed here"):
        world.roll_back()
    with pytest.raises(InputError, match="version 1 of reviews is served now, and is the champion"):
        world.roll_back("1")
    with pytest.raises(InputError, match="no revision of reviews served version 7"):
        world.roll_back("7")
    # What was left behind can be named.
    assert world.roll_back("3")[1].version == "3"
    assert world.state == ({"stable": "3"}, "3")
    assert [version for version, _ in world.served()] == ["1", "2", "3", "2", "1", "3"]


def test_failures_and_canaries_are_not_gone_back_to(world: World) -> None:
    world.deploy("1")
    world.cluster.wrong = {"2"}
    with pytest.raises(ServingError):
        world.deploy("2")
    world.deploy("3", canary_weight=10)
    assert world.roll_back()[1].version == "1"
    assert world.state == ({"stable": "1"}, "1")


def test_a_rollback_that_fails_changes_nothing(world: World) -> None:
    world.deploy("1")
    world.deploy("2")
    world.cluster.wrong = {"1"}
    with pytest.raises(ServingError, match="Version 2 serves as before"):
        world.roll_back()
    assert world.state == ({"stable": "2"}, "2")
    assert world.served()[-1] == ("2", True)


def test_nothing_to_go_back_to(world: World) -> None:
    with pytest.raises(InputError, match="there is no release reviews in serving"):
        world.roll_back()


def test_another_run_is_deploying(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.deploy.kubernetes.rollback.WAIT_SECONDS", 0.0)
    world.deploy("1")
    world.deploy("2")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        registry = MlflowRegistry(world.registry.uri)
        with registry.deploy_lock("reviews", holder="run 77", wait_s=5, step=Step("deploy")):
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        with pytest.raises(RegistryError, match="run 77 is deploying reviews"):
            world.roll_back()
    finally:
        done.set()
        holder.join()
    assert world.state == ({"stable": "2"}, "2")


@pytest.fixture
def begun(world: World) -> Callable[..., subprocess.Popen[str]]:
    """`stillhouse deploy` of version 2, which never becomes ready; returned once helm has changed the Deployment."""

    def begin(*options: str) -> subprocess.Popen[str]:
        changed = threading.Event()
        world.cluster.behaviour["2"] = "pending"
        world.cluster.on_change = lambda kind, thing: changed.set() if kind == "Deployment" else None
        values = world.folder / "values.yaml"
        values.write_text("mlflow: {trackingUri: 'http://mlflow.mlops.svc:5000'}\n")
        command = [sys.executable, "-m", "stillhouse.cli.main", "deploy", "models:/reviews/2", "-n", "serving"]
        process = subprocess.Popen(
            [*command, f"--values={values}", *options],
            env=world.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell's background job, which the tests may be, ignores SIGINT, and hands that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert changed.wait(60)
        world.cluster.on_change = lambda kind, thing: None
        return process

    return begin


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_the_way_back(
    world: World, begun: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    world.deploy("1")
    process = begun()
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    assert world.state == ({"stable": "1"}, "1")
    assert world.revisions() == ["superseded", "failed", "deployed"]


@pytest.mark.parametrize("first", [True, False])
def test_a_killed_deployment_is_brought_in_order_by_the_next(
    world: World, begun: Callable[..., subprocess.Popen[str]], first: bool
) -> None:
    if not first:
        world.deploy("1")
    process = begun()
    (helm,) = psutil.Process(process.pid).children()
    helm.kill()  # as a node does that goes down: nobody notes that anything failed
    process.kill()
    process.communicate()
    wait_until(lambda: not helm.is_running())
    assert world.revisions()[-1] == ("pending-install" if first else "pending-upgrade")

    world.deploy("3")
    assert world.state == ({"stable": "3"}, "3")
    assert world.revisions()[-1] == "deployed"
    assert [thing["metadata"]["name"] for thing in world.cluster.of("deployments")] == ["reviews"]


def test_helm_ends_with_whoever_started_it(world: World, begun: Callable[..., subprocess.Popen[str]]) -> None:
    process = begun()
    (helm,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    wait_until(lambda: not helm.is_running() or helm.status() == psutil.STATUS_ZOMBIE)


def test_a_canary_that_nobody_watches_is_withdrawn_by_the_next(world: World) -> None:
    world.deploy("1")
    wanted = world.cluster.of
    # The canary came up, and its run was killed before it was judged.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillhouse.deploy.kubernetes.deploy.Change._go_back", lambda self: "")
        world.cluster.wrong = {"2"}
        with pytest.raises(ServingError):
            world.deploy("2", canary_weight=10)
    assert world.cluster.serving() == {"stable": "1", "canary": "2"}
    assert world.deploy("1").kept
    assert [thing["metadata"]["name"] for thing in wanted("deployments")] == ["reviews"]
    assert world.state == ({"stable": "1"}, "1")


def test_what_was_killed_before_its_test_is_no_release_to_go_back_to(world: World) -> None:
    world.deploy("1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillhouse.deploy.kubernetes.deploy.Change._go_back", lambda self: "")
        patch.setattr("stillhouse.deploy.kubernetes.release.HelmRelease.test", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.deploy("2")
    assert world.state == ({"stable": "2"}, "1")
    world.cluster.behaviour["3"] = "pending"
    with pytest.raises(ServingError, match="Version 1 serves as before"):
        world.deploy("3")
    assert world.state == ({"stable": "1"}, "1")


def test_a_revision_of_someone_else_is_left_alone(world: World) -> None:
    world.deploy("1")
    others = MlflowRegistry(world.registry.uri)
    calls: list[None] = []

    def overtaken() -> None:
        calls.append(None)
        if world.cluster.serving() == {"stable": "2"} and len(calls) > 2:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(world, "registry", others)
                world.deploy("3")
            raise RegistryError("the lock was lost to another run")

    with pytest.raises(RegistryError, match="the lock was lost"):
        world.deploy("2", allowed=overtaken)
    assert world.state == ({"stable": "3"}, "3")


def wait_until(met: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until
        time.sleep(0.05)
