"""The rights that charts/stillhouse gives the deployer are enough for all that deploying does with the real helm."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_stand_in import _PATH, KINDS, Cluster, Refused

from stillhouse.cli.targets import Place
from stillhouse.deploy.kubernetes.status import release_rows, release_status
from stillhouse.errors import ServingError

pytestmark = pytest.mark.slow

CHARTS = Path(__file__).resolve().parents[2] / "charts"
Right = tuple[str, str, str]
"""API group, resource, verb."""

EVERYTHING = {
    "mlflow": {"trackingUri": "http://mlflow.mlops.svc:5000"},
    "autoscaling": {"enabled": True, "kind": "hpa"},
    "monitoring": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
}
"""Values that render more kinds of objects."""


@pytest.fixture(scope="module")
def granted(helm: Path) -> set[Right]:
    """What the Role of the deployer allows."""
    values = CHARTS / "stillhouse" / "ci" / "minimal-values.yaml"
    command = [helm, "template", "house", CHARTS / "stillhouse", f"--values={values}", "--kube-version=1.29.0"]
    manifests = yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (role,) = [m for m in manifests if m and m["kind"] == "Role" and m["metadata"]["name"] == "house-deployer"]
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.fixture
def used(cluster: Cluster, granted: set[Right], monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Right]]:
    """Lets the cluster refuse all that the Role does not allow, as its API does; what was asked for."""
    asked: set[Right] = set()
    answer, watched = cluster.answer, cluster.watched
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

    def check(group: str, resource: str, verb: str) -> None:
        asked.add((group, resource, verb))
        if (group, resource, verb) not in granted:
            raise Refused(403, "Forbidden", f'the deployer cannot {verb} resource "{resource}" in API group "{group}"')

    def authorised(method: str, path: str, query: dict[str, str], body: bytes, kind: str) -> Any:
        if match := _PATH.fullmatch(path):
            resource = "/".join(filter(None, (match["plural"], match["part"])))
            check(match["group"] or "", resource, verbs.get(method) or ("get" if match["name"] else "list"))
        return answer(method, path, query, body, kind)

    groups = {plural: group for (group, _), kinds in KINDS.items() for plural in kinds}

    def watching(plural: str, *arguments: Any) -> Any:
        check(groups[plural], plural, "watch")
        return watched(plural, *arguments)

    monkeypatch.setattr(cluster, "answer", authorised)
    monkeypatch.setattr(cluster, "watched", watching)
    yield asked
    assert asked <= granted


def test_all_that_deploying_does_is_allowed(world: Any, used: set[Right]) -> None:
    assert world.deploy("1").version == "1"
    assert world.deploy("2", serving_values=EVERYTHING).version == "2"
    assert world.deploy("2").version == "2"  # and the objects are deleted that are not wanted any more
    world.cluster.behaviour["3"] = "crash"
    world.cluster.log = "cannot load\n"
    with pytest.raises(ServingError) as failure:
        world.deploy("3")
    told = str(failure.value)
    assert "Version 2 serves as before" in told
    # The pods' states, logs and events, which other rights are for.
    assert "CrashLoopBackOff" in told and "cannot load" in told and "BackOff: Back-off restarting" in told
    assert "Forbidden" not in told and "cannot" not in told.replace("cannot load", "")
    world.cluster.behaviour.clear()
    world.cluster.wrong = {"3"}
    with pytest.raises(ServingError, match="the smoke test failed"):
        world.deploy("3")
    assert world.roll_back()[1].version == "1"
    assert world.state == ({"stable": "1"}, "1")


def test_a_first_release_that_fails_can_be_removed(world: Any, used: set[Right]) -> None:
    world.cluster.behaviour["1"] = "pending"
    with pytest.raises(ServingError, match="The release was removed again"):
        world.deploy("1", serving_values=EVERYTHING)
    assert world.cluster.of("deployments") == [] and world.revisions() == []
    assert ("monitoring.coreos.com", "prometheusrules", "delete") in used


def test_a_canary_with_its_route_is_allowed(world: Any, used: set[Right]) -> None:
    route = {"enabled": True, "parentRefs": [{"name": "gateway", "namespace": "gateways"}]}
    values = {**EVERYTHING, "route": route}
    world.deploy("1", serving_values=values)
    world.deploy("2", serving_values=values, canary_weight=20, canary_minutes=0.01)
    assert world.state == ({"stable": "2"}, "2")
    assert {("gateway.networking.k8s.io", "grpcroutes", verb) for verb in ("get", "create", "patch")} <= used


def test_looking_at_releases_is_allowed(world: Any, used: set[Right]) -> None:
    world.deploy("1")
    with Place(target="kubernetes", namespace="serving").releases("reviews") as (release,):
        assert release_status(release, "1")["stable"]["ready"] > 0
        assert release_rows(release, "1")


@pytest.mark.parametrize("right", [("apps", "replicasets", "list"), ("", "pods", "create"), ("", "secrets", "update")])
def test_without_a_right_it_fails(world: Any, used: set[Right], granted: set[Right], right: Right) -> None:
    """The cluster does refuse what is not granted."""
    granted.discard(right)
    try:
        with pytest.raises(ServingError, match="cannot"):
            world.deploy("1")
    finally:
        granted.add(right)
    assert right in used
