"""The life of a schedule, against a server that holds every request to the API's schema."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from kfp_stand_in import Refused, StandIn

from stillhouse.pipelines.remote import uploads

DATA = ("--set", "data=s3://bucket/reviews.csv")
WEEKLY = ("--cron", "0 6 * * 1", "--time-zone", "Asia/Tokyo")


def result(answer: tuple[int, Any]) -> Any:
    code, body = answer
    assert code == 0, body
    return body["result"]


def error(answer: tuple[int, Any], code: int) -> dict[str, Any]:
    assert answer[0] == code, answer[1]
    return answer[1]["error"]


def test_the_whole_life(kubeflow: StandIn, command: Any):
    assert result(command("schedule", "list")) == []

    made = result(
        command("schedule", "create", "weekly", *WEEKLY, *DATA, "--set", "model_name=verdicts", "--experiment", "e")
    )
    (entry,) = kubeflow.recurring.values()
    assert entry.trigger.cron_schedule.cron == "0 0 21 * * 0"  # 06:00 on Monday in Tokyo, in UTC
    assert entry.trigger.periodic_schedule is None
    assert (entry.no_catchup, entry.max_concurrency, entry.status) == (True, "1", "ENABLED")
    # The latest version, whichever that is when it runs.
    assert entry.pipeline_version_reference.pipeline_id in kubeflow.pipelines
    assert entry.pipeline_version_reference.pipeline_version_id is None
    assert entry.runtime_config.parameters == {
        "data": "s3://bucket/reviews.csv", "model_name": "verdicts", "skip_unchanged": True,
    }  # fmt: skip
    assert kubeflow.experiments[entry.experiment_id].display_name == "e"
    assert (made["trigger"], made["time_zone"], made["state"]) == ("Monday at 06:00", "Asia/Tokyo", "active")
    due = datetime.fromisoformat(made["next"])
    assert due > datetime.now(timezone.utc)
    assert (due.weekday(), due.hour) == (6, 21)

    (row,) = result(command("schedule", "list"))
    assert (row["name"], row["model_name"], row["last"], row["next"]) == ("weekly", "verdicts", None, made["next"])
    assert "parameters" not in row

    kubeflow.tick(entry.recurring_run_id)
    shown = result(command("schedule", "show", "weekly"))
    assert (shown["last_state"], shown["parameters"]["skip_unchanged"]) == ("running", True)
    assert shown["last"]

    paused = result(command("schedule", "pause", "weekly"))
    assert (paused["state"], paused["next"], entry.status) == ("paused", None, "DISABLED")
    assert result(command("schedule", "resume", entry.recurring_run_id))["state"] == "active"

    assert result(command("schedule", "delete", "weekly"))["deleted"] == "weekly"
    assert kubeflow.recurring == {}
    assert len(kubeflow.runs) == 1  # what it has started stays
    gone = error(command("schedule", "show", "weekly"), 2)
    assert gone["problems"][0]["where"] == "NAME"


def test_an_interval_with_limits_and_catch_up(kubeflow: StandIn, command: Any):
    made = result(command(
        "schedule", "create", "often", "--every", "6h", "--start", "2040-01-01T08:00", "--time-zone", "Europe/Berlin",
        "--end", "2041-01-01", "--max-concurrency", "3", "--catch-up", *DATA, "--set", "skip_unchanged=false",
    ))  # fmt: skip
    (entry,) = kubeflow.recurring.values()
    periodic = entry.trigger.periodic_schedule
    assert (periodic.interval_second, entry.max_concurrency, entry.no_catchup) == ("21600", "3", False)
    assert periodic.start_time == datetime(2040, 1, 1, 7, tzinfo=timezone.utc)
    assert periodic.end_time == datetime(2040, 12, 31, 23, tzinfo=timezone.utc)
    assert "skip_unchanged" not in entry.runtime_config.parameters
    assert made["trigger"] == "every 6 hours"
    assert made["next"] == "2040-01-01T13:00:00+00:00"  # Kubeflow waits an interval first


def test_its_runs_take_the_version_that_is_the_latest_then(
    kubeflow: StandIn, command: Any, monkeypatch: pytest.MonkeyPatch
):
    result(command("schedule", "create", "weekly", *WEEKLY, *DATA))
    (schedule_id,) = kubeflow.recurring
    first = kubeflow.tick(schedule_id).pipeline_version_reference.pipeline_version_id
    compiled = uploads.compiled_yaml
    monkeypatch.setattr(uploads, "compiled_yaml", lambda *a: compiled(*a).replace("finetune-2", "finetune-x"))
    command("submit", *DATA)
    second = kubeflow.tick(schedule_id).pipeline_version_reference.pipeline_version_id
    assert first != second
    # Back at the older release: its content must be the latest again.
    monkeypatch.setattr(uploads, "compiled_yaml", compiled)
    command("submit", *DATA)
    assert len(kubeflow.versions) == 2
    made = result(command("schedule", "create", "another", *WEEKLY, *DATA))
    assert made["uploaded"] and made["pipeline_version"].endswith("-2")
    third = kubeflow.tick(schedule_id).pipeline_version_reference.pipeline_version_id
    assert kubeflow.versions[third].pipeline_spec == kubeflow.versions[first].pipeline_spec


def test_a_name_is_taken_once_and_replaced_when_asked(kubeflow: StandIn, command: Any):
    first = result(command("schedule", "create", "weekly", *WEEKLY, *DATA))
    taken = error(command("schedule", "create", "weekly", "--every", "1d", *DATA), 2)
    assert "--replace" in taken["problems"][0]["remedy"]
    assert list(kubeflow.recurring) == [first["id"]]

    result(command("schedule", "pause", "weekly"))
    kubeflow.requests.clear()
    second = result(command("schedule", "create", "weekly", "--every", "1d", *DATA, "--replace"))
    assert second["replaced"] == [first["id"]]
    assert list(kubeflow.recurring) == [second["id"]]
    assert second["state"] == "paused"  # as it was
    names = [name for name in kubeflow.operations() if "create_recurring" in name or "delete_recurring" in name]
    assert [name.split("_")[3] for name in names] == ["create", "delete"]


def test_if_the_old_one_stays_both_are_named(kubeflow: StandIn, command: Any):
    first = result(command("schedule", "create", "weekly", *WEEKLY, *DATA))

    def refuse(recurring_run_id: str, **query: str) -> Any:
        raise Refused(403, "not yours")

    kubeflow.recurring_run_service_delete_recurring_run = refuse
    left = error(command("schedule", "create", "weekly", "--every", "1d", *DATA, "--replace"), 1)["message"]
    assert first["id"] in left
    assert len(kubeflow.recurring) == 2
    ambiguous = error(command("schedule", "pause", "weekly"), 2)
    assert first["id"] in ambiguous["problems"][0]["remedy"]


def test_schedules_of_others_are_left_alone(kubeflow: StandIn, command: Any):
    result(command("schedule", "create", "weekly", *WEEKLY, *DATA))
    (entry,) = kubeflow.recurring.values()
    entry.description = "made in the user interface"
    assert result(command("schedule", "list")) == []
    error(command("schedule", "delete", "weekly"), 2)
    assert len(kubeflow.recurring) == 1


def test_the_namespace_is_in_every_request(kubeflow: StandIn, command: Any):
    kubeflow.namespace = "team-a"
    result(command("schedule", "create", "weekly", *WEEKLY, *DATA, "--namespace", "team-a"))
    assert next(iter(kubeflow.recurring.values())).namespace == "team-a"
    assert result(command("schedule", "show", "weekly", "--namespace", "team-a"))["name"] == "weekly"
    refused = error(command("schedule", "list", "--namespace", "team-b"), 1)
    assert "'team-b' (403)" in refused["message"]


def test_everything_wrong_is_told_before_anything_is_sent(kubeflow: StandIn, command: Any):
    wrong = error(
        command("schedule", "create", " ", "--cron", "0 25 * * *", "--max-concurrency", "0", "--set", "data=x.csv",
                "--set", "seed=x"), 2
    )  # fmt: skip
    where = {problem["where"] for problem in wrong["problems"]}
    assert where == {"NAME", "--cron", "--max-concurrency", "data", "seed"}
    assert kubeflow.requests == []
