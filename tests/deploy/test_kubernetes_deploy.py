"""Deploying with the real helm against a stand-in of the cluster's API: the alias moves exactly when it should."""

from __future__ import annotations

import pytest
from deployed_world import TRACKING_URI, World

from stillhouse.errors import InputError, RegistryError, ServingError

pytestmark = pytest.mark.slow


def test_first_install_then_upgrade(world: World) -> None:
    first = world.deploy("1")
    assert (first.version, first.grpc_url, first.kept) == ("1", "reviews.serving.svc:8001", False)
    assert world.state == ({"stable": "1"}, "1")
    assert len(first.answers) == len(world.rows)

    second = world.deploy("2")
    assert second.details["revision"] == 2
    assert world.state == ({"stable": "2"}, "2")
    assert world.served() == [("1", False), ("2", True)]
    assert world.revisions() == ["superseded", "deployed"]


def test_the_same_again_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deploy("1")
    before = [thing["metadata"]["resourceVersion"] for thing in world.cluster.of("deployments")]
    assert world.deploy("1").kept
    assert [thing["metadata"]["resourceVersion"] for thing in world.cluster.of("deployments")] == before
    assert world.revisions() == ["deployed"]
    # Another chart, and other values, are another release of the same version.
    with monkeypatch.context() as patch:
        patch.setattr("stillhouse.deploy.kubernetes.deploy.chart_label", lambda: "triton-9.9.9")
        assert not world.deploy("1").kept
    assert not world.deploy("1", serving_values={"mlflow": {"trackingUri": TRACKING_URI}, "replicas": 3}).kept
    assert len(world.cluster.of("replicasets")) == 1 and world.revisions() == ["superseded", "superseded", "deployed"]


def test_what_never_becomes_ready_is_rolled_back(world: World) -> None:
    world.deploy("1")
    world.cluster.behaviour["2"] = "crash"
    world.cluster.log = "failed to load https://user:hunter2@store/model\n"
    with pytest.raises(ServingError) as failure:
        world.deploy("2")
    told = str(failure.value)
    assert "timed out waiting for the condition" in told
    assert "Version 1 serves as before." in told
    assert "CrashLoopBackOff: back-off 5m0s restarting failed container, restarted 3 times" in told
    assert "[triton] failed to load https://***@store/model" in told
    assert "BackOff: Back-off restarting failed container triton (x3)" in told
    assert "hunter2" not in told
    assert world.state == ({"stable": "1"}, "1")
    assert world.served() == [("1", True)]
    assert world.revisions() == ["superseded", "failed", "deployed"]


def test_what_cannot_be_scheduled_says_so(world: World) -> None:
    world.cluster.behaviour["1"] = "pending"
    with pytest.raises(ServingError, match=r"3 Insufficient nvidia\.com/gpu") as failure:
        world.deploy("1")
    # It was the first: nothing is left of it.
    assert "The release was removed again: nothing served before." in str(failure.value)
    assert world.state == ({}, None)
    assert world.revisions() == [] and world.cluster.of("deployments") == []


def test_wrong_answers_are_rolled_back(world: World) -> None:
    world.deploy("1")
    world.cluster.wrong = {"2"}
    world.cluster.log = "'bad': answered 'positive' for 'negative'.\n"
    with pytest.raises(ServingError) as failure:
        world.deploy("2")
    assert "the smoke test failed" in str(failure.value)
    assert "'bad': answered 'positive' for 'negative'." in str(failure.value)
    assert world.state == ({"stable": "1"}, "1")
    # What failed its test is no release to go back to, though helm calls it superseded.
    assert world.revisions() == ["superseded", "superseded", "deployed"]
    world.cluster.behaviour["3"] = "pending"
    with pytest.raises(ServingError, match="Version 1 serves as before"):
        world.deploy("3")
    assert world.state == ({"stable": "1"}, "1")


def test_a_way_back_that_fails_is_told(world: World) -> None:
    world.deploy("1")
    world.cluster.wrong = {"1", "2"}
    with pytest.raises(
        ServingError, match=r"And the way back to version 1 \(revision 1\) failed: the smoke test failed"
    ):
        world.deploy("2")
    assert world.champion == "1"


def test_the_alias_moves_last_and_takes_the_release_back_with_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deploy("1")
    set_alias, moves = world.registry.set_alias, []

    def fail(name: str, alias: str, version: str) -> None:
        moves.append((version, world.cluster.serving()))
        set_alias(name, alias, version)
        if len(moves) == 1:  # moved, and the answer is lost
            raise RegistryError("the registry is out of order")

    monkeypatch.setattr(world.registry, "set_alias", fail)
    with pytest.raises(RegistryError, match="out of order"):
        world.deploy("2")
    assert moves == [("2", {"stable": "2"}), ("1", {"stable": "2"})]
    assert world.state == ({"stable": "1"}, "1")
    assert world.served()[-1] == ("1", True)


def test_nothing_is_done_without_the_lock(world: World) -> None:
    world.deploy("1")

    def lost() -> None:
        raise RegistryError("the lock was lost")

    with pytest.raises(RegistryError, match="lock was lost"):
        world.deploy("2", allowed=lost)
    assert world.state == ({"stable": "1"}, "1") and world.revisions() == ["deployed"]


def test_values_that_the_chart_refuses_change_nothing(world: World) -> None:
    world.deploy("1")
    wrong = {
        "mlflow": {"trackingUri": TRACKING_URI},
        "replicas": "two",
        "model": {"name": "x"},
        "canary": {"weight": 5},
    }
    with pytest.raises(InputError) as failure:
        world.deploy("2", serving_values=wrong)
    where = {problem.where for problem in failure.value.problems}
    assert {"serving_values.replicas", "serving_values.model", "serving_values.canary.weight"} <= where
    assert world.state == ({"stable": "1"}, "1") and world.revisions() == ["deployed"]


def test_a_release_of_something_else_is_left_alone(world: World) -> None:
    world.deploy("1")
    with pytest.raises(InputError, match="reviews in serving serves the model reviews"):
        world.deploy("1", model_name="other", release="reviews")
