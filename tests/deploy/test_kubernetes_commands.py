"""`stillhouse deploy`, `releases`, `rollback` and `status` on Kubernetes, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from deployed_world import World

pytestmark = pytest.mark.slow
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(world: World) -> Command:
    """Runs `stillhouse` beside a file of values."""
    (world.folder / "values.yaml").write_text("mlflow: {trackingUri: 'http://mlflow.mlops.svc:5000'}\nreplicas: 3\n")

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stillhouse.cli.main", *arguments],
            env={**world.environment(), **variables},
            cwd=world.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_from_nothing_to_a_rollback(world: World, command: Command) -> None:
    nothing = command("status", "--target", "kubernetes")
    assert (nothing.returncode, nothing.stdout) == (1, "Nothing is deployed there.\n"), nothing.stderr
    assert command("releases", "-n", "serving").stdout == "Nothing was deployed there yet.\n"

    world.registry.set_alias("reviews", "challenger", "1")
    first = command("deploy", "models:/reviews@challenger", "--target=kubernetes", "--values=values.yaml")
    assert first.returncode == 0, first.stderr
    assert first.stdout == (
        "Serving reviews version 1 at gRPC reviews.serving.svc:8001, release reviews in serving, revision 1; "
        "it is the champion now.\n"
    )
    assert "smoke-test from inside the cluster …" in first.stderr
    second = command("deploy", "models:/reviews/2", "--context=here", "-f", "values.yaml", "--json")
    body = json.loads(second.stdout)
    assert (body["version"], body["revision"], body["url"]) == ("2", 2, "reviews.serving.svc:8001")
    # It was tested with the texts of the release before.
    assert {row["text"] for row in body["examples"]} <= {"ok", "The quick brown fox jumps over the lazy dog.", ""}

    status = command("status", STILLHOUSE_TARGET="kubernetes")
    assert status.returncode == 0, status.stderr
    assert "stable   version 2, 3 of 3 pods ready" in status.stdout
    assert "tested   succeeded" in status.stdout and "champion version 2" in status.stdout

    back = command("rollback", "-n", "serving", "--json")
    assert back.returncode == 0, back.stderr
    assert (json.loads(back.stdout)["before"], json.loads(back.stdout)["version"]) == ("2", "1")
    assert world.state == ({"stable": "1"}, "1")

    rows = json.loads(command("releases", "reviews", "-n", "serving", "--json").stdout)
    assert [(r["revision"], r["version"], r["how"], r["status"], r["served"], r["champion"]) for r in rows] == [
        (3, "1", "rollback", "deployed", True, True),
        (2, "2", "deploy", "superseded", False, False),
        (1, "1", "deploy", "superseded", False, False),
    ]
    table = command("releases", "-n", "serving").stdout.splitlines()
    assert "served, champion" in table[2] and "served" not in table[3]


def test_a_release_that_ails(world: World, command: Command) -> None:
    world.deploy("1")
    world.cluster.behaviour["1"] = "crash"
    world.cluster.restart("reviews")
    status = command("status", "reviews", "-n", "serving")
    assert status.returncode == 1
    assert "0 of" in status.stdout and "CrashLoopBackOff" in status.stdout
    (row,) = json.loads(command("status", "-n", "serving", "--json").stdout)
    assert row["answers"] is False and row["stable"]["ready"] == 0 and row["trouble"]


def test_pods_are_shown_though_the_registry_is_away(world: World, command: Command) -> None:
    world.deploy("1")
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    status = command("status", "-n", "serving", **away)
    assert status.returncode == 0, status.stderr
    assert "stable   version 1" in status.stdout and "champion not known" in status.stdout
    assert "Is the server running" in status.stderr
    (row,) = json.loads(command("status", "-n", "serving", "--json", **away).stdout)
    assert (row["answers"], row["champion"]) == (True, None)


def test_what_is_refused(world: World, command: Command) -> None:
    for arguments, code, told in [
        (("deploy", "models:/reviews/1", "--target=local", "-n", "serving"), 2, "can only mean Kubernetes"),
        (("deploy", "models:/reviews/1", "--target=moon"), 2, "'moon' is unknown"),
        (("deploy", "models:/reviews/1", "--canary-weight=5"), 2, "--target kubernetes"),
        (("deploy", "models:/reviews/9", "-n", "serving"), 1, "has no version 9"),
        (("deploy", "models:/reviews/1", "-n", "serving"), 2, "mlflow.trackingUri"),
        (("deploy", "models:/reviews/1", "-n", "serving", "-f", "none.yaml"), 2, "none.yaml"),
        (("status", "--context=elsewhere"), 2, "There are: here."),
        (("rollback", "-n", "serving"), 2, "nothing is deployed there"),
        (("rollback", "-n", "serving", "--to=last"), 2, "'last' is not a positive whole number"),
    ]:
        done = command(*arguments)
        assert (done.returncode, told in done.stderr) == (code, True), (arguments, done.stderr)
    client = world.registry.client()
    client.set_model_version_tag("reviews", "3", "stillhouse.deployable", "false")
    client.set_model_version_tag("reviews", "3", "stillhouse.undeployable_reason", "It does not beat TF-IDF.")
    refused = command("deploy", "models:/reviews/3", "-n", "serving", "-f", "values.yaml")
    assert refused.returncode == 2 and "may not be served: It does not beat TF-IDF." in refused.stderr
    assert world.cluster.of("secrets") == []


def test_a_cluster_that_cannot_be_reached(world: World, command: Command) -> None:
    path = world.folder / "kubeconfig"
    path.write_text(path.read_text().replace(world.cluster.url, "http://127.0.0.1:1"))
    done = command("deploy", "models:/reviews/1", "-n", "serving", "-f", "values.yaml")
    assert done.returncode == 1 and "127.0.0.1:1" in done.stderr, done.stderr
    assert world.champion is None
