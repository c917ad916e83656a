"""The lock of a model's rollouts: processes on a database file, threads on a server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stillhouse.errors import RegistryError
from stillhouse.progress import Step
from stillhouse.registry import DeployLock, LockBusy, MlflowRegistry

QUEUE = "reviews.deploy-lock"
STEP = Step("deploy")
# Adds a line to a file on entering and another on leaving; a second process in between would show in their order.
WORKER = """
import sys, time
from stillhouse.progress import Step
from stillhouse.registry import MlflowRegistry
name = sys.argv[3]
with MlflowRegistry(sys.argv[1]).deploy_lock("reviews", holder=name, wait_s=300, step=Step("deploy")) as lock:
    with open(sys.argv[2], "a") as file:
        print(name, "in", file=file, flush=True)
        time.sleep(0.5)
        lock.check()
        print(name, "out", file=file, flush=True)
"""


@pytest.fixture
def registry(store) -> MlflowRegistry:
    return store.registry


def one_after_another(lines: list[str], count: int) -> None:
    assert len(lines) == 2 * count
    for entering, leaving in zip(lines[::2], lines[1::2], strict=True):
        assert entering.split()[0] == leaving.split()[0]
        assert (entering.split()[1], leaving.split()[1]) == ("in", "out")


@pytest.mark.slow
def test_processes_hold_it_one_after_another(registry: MlflowRegistry, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", WORKER, registry.uri, str(log)]
    processes = [
        subprocess.Popen([*command, f"run-{n}"], stderr=subprocess.PIPE, text=True, cwd=tmp_path) for n in range(4)
    ]
    ends = [(process.communicate()[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0] * 4, ends
    one_after_another(log.read_text().splitlines(), 4)
    assert registry.client().search_model_versions(f"name='{QUEUE}'") == []
    assert registry.models() == []  # the queue is no model


def test_who_does_not_wait_is_told_whom_for(registry: MlflowRegistry) -> None:
    with registry.deploy_lock("reviews", holder="first", wait_s=0, step=STEP):
        with (
            pytest.raises(LockBusy, match="first"),
            registry.deploy_lock("reviews", holder="second", wait_s=0, step=STEP),
        ):
            pytest.fail("the lock was held by another")
        with registry.deploy_lock("other-model", holder="third", wait_s=0, step=STEP):
            pass
    with registry.deploy_lock("reviews", holder="second", wait_s=0, step=STEP) as lock:
        lock.check()


def test_it_is_given_back_after_an_error(registry: MlflowRegistry) -> None:
    with (
        pytest.raises(ValueError, match="the rollout failed"),
        registry.deploy_lock("reviews", holder="first", wait_s=0, step=STEP),
    ):
        raise ValueError("the rollout failed")
    with registry.deploy_lock("reviews", holder="second", wait_s=0, step=STEP):
        pass


def test_another_attempt_of_the_same_run_takes_over(registry: MlflowRegistry) -> None:
    dead = DeployLock(registry, "reviews", "run 7")
    dead._take_ticket()
    with registry.deploy_lock("reviews", holder="run 7", wait_s=0, step=STEP) as lock:
        lock.check()
        with pytest.raises(RegistryError, match="lost to another run"):
            dead.check()


def test_a_dead_holder_is_passed_over_and_knows_it_lost(registry: MlflowRegistry) -> None:
    lease = 1.5
    dead = DeployLock(registry, "reviews", "dead", lease_s=lease)
    dead._take_ticket()
    living = DeployLock(registry, "reviews", "living", lease_s=lease)
    with pytest.raises(LockBusy, match="dead"), living.hold(wait_s=0, step=STEP):
        pytest.fail("the ticket was still fresh")
    time.sleep(lease)
    with living.hold(wait_s=0, step=STEP) as lock:
        lock.check()
        with pytest.raises(RegistryError, match="lost"):
            dead.check()


@pytest.mark.slow
def test_a_holder_that_works_for_long_keeps_it(registry: MlflowRegistry) -> None:
    lease = 3.0
    with DeployLock(registry, "reviews", "slow", lease_s=lease).hold(wait_s=0, step=STEP) as lock:
        time.sleep(1.5 * lease)
        other = DeployLock(registry, "reviews", "other", lease_s=lease)
        with pytest.raises(LockBusy, match="slow"), other.hold(wait_s=0, step=STEP):
            pytest.fail("the holder is alive")
        lock.check()


def test_one_held_up_while_waiting_queues_again(registry: MlflowRegistry) -> None:
    waiting = DeployLock(registry, "reviews", "waiting")
    waiting._take_ticket()
    first = waiting._ticket
    registry.client().delete_model_version(QUEUE, first)
    assert waiting._ahead() is None
    assert int(waiting._ticket or 0) > int(first or 0)


@pytest.mark.slow
def test_threads_on_a_server_hold_it_one_after_another(server: str) -> None:
    lines: list[str] = []

    def deploy(name: str) -> None:
        lock = MlflowRegistry(server).deploy_lock("reviews", holder=name, wait_s=300, step=STEP)
        with lock as held:
            lines.append(f"{name} in")
            time.sleep(0.2)
            held.check()
            lines.append(f"{name} out")

    threads = [threading.Thread(target=deploy, args=(f"run-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    one_after_another(lines, 6)
