"""The record of what was in production, in a real MLflow."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import mlflow
import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.errors import RegistryError
from stillhouse.registry import MlflowRegistry, ServicePeriod
from stillhouse.registry import service as service_module

HERE, THERE = "local laptop", "kubernetes models/reviews"
BEGIN = datetime(2026, 11, 21, 10, 0, 0, tzinfo=timezone.utc)


class Clock:
    """Time goes on by an hour with each look at it."""

    def __init__(self) -> None:
        self.hours = -1

    def __call__(self) -> str:
        self.hours += 1
        return (BEGIN + timedelta(hours=self.hours)).isoformat(timespec="seconds")


@pytest.fixture
def client(store: Any, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Of a registry with three versions of `reviews`."""
    monkeypatch.setattr(service_module, "_now", Clock())
    return with_versions(store.uri)


def with_versions(uri: str) -> mlflow.MlflowClient:
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("reviews")
    for _ in range(3):
        client.create_model_version("reviews", "stillhouse:/none", tags={"stillhouse.manifest_digest": "0" * 64})
    return client


def told(registry: MlflowRegistry) -> list[tuple[str, str, str, str]]:
    """Version, where, and the hours of since and until."""
    return [
        (one.version, one.where, one.since[11:16], (one.until or "now")[11:16] or "now")
        for one in registry.service_history("reviews")
    ]


def test_one_release_follows_the_other(store: Any, client: mlflow.MlflowClient) -> None:
    registry = store.registry
    registry.begin_service("reviews", "1", where=THERE)
    assert registry.service_history("reviews") == [
        ServicePeriod(version="1", where=THERE, since="2026-11-21T10:00:00+00:00", until=None)
    ]
    registry.begin_service("reviews", "2", where=THERE)
    assert told(registry) == [("2", THERE, "11:00", "now"), ("1", THERE, "10:00", "11:00")]
    # Back to the first: its earlier period stays.
    registry.begin_service("reviews", "1", where=THERE)
    assert told(registry) == [
        ("1", THERE, "12:00", "now"), ("2", THERE, "11:00", "12:00"), ("1", THERE, "10:00", "11:00"),
    ]  # fmt: skip
    registry.end_service("reviews", where=THERE)
    assert told(registry)[0] == ("1", THERE, "12:00", "13:00")
    assert store.registry.tags("reviews", "1")["manifest_digest"] == "0" * 64


def test_places_do_not_disturb_each_other(store: Any, client: mlflow.MlflowClient) -> None:
    store.registry.begin_service("reviews", "1", where=HERE)
    store.registry.begin_service("reviews", "2", where=THERE)
    store.registry.end_service("reviews", where=HERE)
    assert told(store.registry) == [("2", THERE, "11:00", "now"), ("1", HERE, "10:00", "12:00")]


def test_deployed_again_goes_on(store: Any, client: mlflow.MlflowClient) -> None:
    for _ in range(3):
        store.registry.begin_service("reviews", "1", where=HERE)
    assert told(store.registry) == [("1", HERE, "10:00", "now")]


def test_a_beginning_that_was_cut_off_is_put_right_by_the_next(store: Any, client: mlflow.MlflowClient) -> None:
    for version in ("1", "2"):  # both stand open, as after a crash between the two writes
        text = json.dumps([{"where": HERE, "since": "2026-11-21T09:00:00+00:00", "until": None}])
        client.set_model_version_tag("reviews", version, "stillhouse.service", text)
    store.registry.begin_service("reviews", "2", where=HERE)
    assert told(store.registry) == [("2", HERE, "09:00", "now"), ("1", HERE, "09:00", "10:00")]


def test_a_machine_whose_clock_is_ahead_leaves_no_period_that_ends_before_it_begins(
    store: Any, client: mlflow.MlflowClient
) -> None:
    text = json.dumps([{"where": HERE, "since": "2026-11-21T23:00:00+00:00", "until": None}])
    client.set_model_version_tag("reviews", "1", "stillhouse.service", text)
    store.registry.begin_service("reviews", "2", where=HERE)
    assert ("1", HERE, "23:00", "23:00") in told(store.registry)


def test_the_tag_is_bounded_and_keeps_the_newest(store: Any, client: mlflow.MlflowClient) -> None:
    store.registry.begin_service("reviews", "1", where=THERE)  # stands open all the time
    for _ in range(60):
        store.registry.begin_service("reviews", "1", where=HERE)
        store.registry.end_service("reviews", where=HERE)
    text = client.get_model_version("reviews", "1").tags["stillhouse.service"]
    assert 4500 < len(text) <= 4900
    periods = [one for one in store.registry.service_history("reviews")]
    assert periods[0].since == (BEGIN + timedelta(hours=119)).isoformat()
    assert [one.where for one in periods if one.until is None] == [THERE]
    assert periods[-1] == ServicePeriod(version="1", where=THERE, since=BEGIN.isoformat())


@pytest.mark.parametrize("text", ["not JSON", "7", "[7]", '[{"where": 1}]', "null"])
def test_a_tag_that_someone_spoilt_is_begun_anew(store: Any, client: mlflow.MlflowClient, text: str) -> None:
    client.set_model_version_tag("reviews", "1", "stillhouse.service", text)
    assert store.registry.service_history("reviews") == []
    store.registry.begin_service("reviews", "1", where=HERE)
    assert told(store.registry) == [("1", HERE, "10:00", "now")]


def test_what_is_not_there_has_no_history(store: Any, tmp_path: Any) -> None:
    empty = MlflowRegistry(f"sqlite:///{tmp_path}/none/mlflow.db")
    assert empty.service_history("reviews") == []
    empty.end_service("reviews", where=HERE)
    assert not (tmp_path / "none").exists()
    assert store.registry.service_history("unknown") == []
    store.registry.end_service("unknown", where=HERE)
    with pytest.raises(RegistryError, match="no model 'unknown'"):
        store.registry.begin_service("unknown", "1", where=HERE)


@pytest.mark.slow
def test_a_server_keeps_the_record_too(server: str) -> None:
    with_versions(server)
    registry = MlflowRegistry(server)
    registry.begin_service("reviews", "1", where=THERE)
    registry.begin_service("reviews", "3", where=THERE)
    new, old = registry.service_history("reviews")
    assert (new.version, new.until, old.version) == ("3", None, "1") and old.until is not None
    assert datetime.fromisoformat(old.until).utcoffset() == timedelta(0)
    with pytest.raises(RegistryError, match="has no version 9"):
        registry.begin_service("reviews", "9", where=THERE)


def test_the_command_shows_it(store: Any, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    runner = CliRunner(env={"COLUMNS": "100"})
    assert "Nothing of reviews was in production yet." in runner.invoke(app, ["models", "reviews", "--history"]).stdout
    store.registry.begin_service("reviews", "1", where=HERE)
    store.registry.begin_service("reviews", "2", where=THERE)
    store.registry.end_service("reviews", where=HERE)
    lines = runner.invoke(app, ["models", "--history"], catch_exceptions=False).stdout.splitlines()
    assert lines[2].split() == ["2026-11-21", "11:00", "now", "reviews", "2", *THERE.split()]
    assert lines[3].split() == ["2026-11-21", "10:00", "2026-11-21", "12:00", "reviews", "1", *HERE.split()]
    rows = json.loads(runner.invoke(app, ["models", "--history", "--json"]).stdout)
    assert rows[0] == {
        "model": "reviews", "version": "2", "where": THERE, "since": "2026-11-21T11:00:00+00:00", "until": None,
    }  # fmt: skip
