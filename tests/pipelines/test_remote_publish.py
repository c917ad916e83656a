"""Pipelines and schedules published from a file, against a server that holds every request to the API's schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_stand_in import Refused, StandIn
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.errors import InputError
from stillhouse.pipelines.remote import uploads

WEEKLY = {
    "name": "weekly", "cluster": "gpu", "cron": "0 6 * * 1", "time_zone": "Asia/Tokyo",
    "parameters": {"data": "s3://bucket/reviews/", "model_name": "verdicts", "tolerations": [], "seed": 3},
}  # fmt: skip
OFTEN = {"name": "often", "cluster": "cpu", "every": "6h", "parameters": {"data": "s3://bucket/other.csv"}}
FILE = {"pipelines": [{"cluster": "gpu"}], "schedules": [WEEKLY, OFTEN]}

Publish = Callable[..., Any]


@pytest.fixture
def publish(kubeflow: StandIn, command: Any, tmp_path: Path) -> Publish:
    """Writes a file and publishes it; returns the result, or with `code` the error."""

    def run(body: Any, *options: str, code: int = 0) -> Any:
        path = tmp_path / "publish.yaml"
        path.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
        kubeflow.requests.clear()
        exit_code, answer = command("publish", str(path), *options)
        assert exit_code == code, answer
        return answer["error"] if code else answer["result"]

    return run


def actions(result: Any) -> dict[str, str]:
    return {one["name"]: one["action"] for one in result["schedules"]}


def changes(kubeflow: StandIn) -> list[str]:
    """The operations that change anything."""
    return [name for name in kubeflow.operations() if not any(verb in name for verb in ("_list_", "_get_"))]


def test_the_first_time_makes_all_of_it_and_the_second_nothing(kubeflow: StandIn, publish: Publish):
    first = publish(FILE)
    assert {one["pipeline"]: one["uploaded"] for one in first["pipelines"]} == {
        "stillhouse-train-and-deploy-gpu": True, "stillhouse-train-and-deploy-cpu": True,
    }  # fmt: skip
    assert actions(first) == {"weekly": "created", "often": "created"}
    entries = {entry.display_name: entry for entry in kubeflow.recurring.values()}
    assert entries["weekly"].trigger.cron_schedule.cron == "0 0 21 * * 0"
    assert entries["weekly"].runtime_config.parameters == {
        "data": "s3://bucket/reviews/", "model_name": "verdicts", "skip_unchanged": True, "seed": 3,
    }  # fmt: skip
    assert entries["often"].trigger.periodic_schedule.interval_second == "21600"
    names = {p.pipeline_id: p.display_name for p in kubeflow.pipelines.values()}
    assert names[entries["often"].pipeline_version_reference.pipeline_id] == "stillhouse-train-and-deploy-cpu"

    second = publish(FILE)
    assert changes(kubeflow) == []
    assert actions(second) == {"weekly": "unchanged", "often": "unchanged"}
    assert [one["id"] for one in second["schedules"]] == [one["id"] for one in first["schedules"]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cron": "0 7 * * 1"}, ["cron"]),
        ({"cron": "", "every": "1d"}, ["cron", "every"]),
        ({"max_concurrency": 2}, ["max_concurrency"]),
        ({"catch_up": True}, ["catch_up"]),
        ({"end": "2040-01-01"}, ["end"]),
        ({"experiment": "other"}, ["experiment"]),
        ({"cluster": "cpu"}, ["pipeline"]),
        ({"parameters": {"data": "s3://bucket/reviews/", "skip_unchanged": False, "seed": 4}},
         ["parameters.model_name", "parameters.seed", "parameters.skip_unchanged"]),
    ],
)  # fmt: skip
def test_what_changed_is_changed_and_told(kubeflow: StandIn, publish: Publish, change: Any, told: list[str]):
    zone = {"time_zone": "UTC"}
    before = publish({"schedules": [WEEKLY | zone, OFTEN]})["schedules"][0]
    after, other = publish({"schedules": [WEEKLY | zone | change, OFTEN]})["schedules"]
    assert (after["action"], other["action"]) == ("changed", "unchanged")
    assert after["changes"] == told
    assert len(kubeflow.recurring) == 2 and before["id"] not in kubeflow.recurring
    again = publish({"schedules": [WEEKLY | zone | change, OFTEN]})
    assert set(actions(again).values()) == {"unchanged"}


def test_what_is_paused_stays_so_unless_the_file_says(kubeflow: StandIn, publish: Publish, command: Any):
    publish({"schedules": [WEEKLY]})
    command("schedule", "pause", "weekly")
    assert actions(publish({"schedules": [WEEKLY]})) == {"weekly": "unchanged"}
    changed = publish({"schedules": [WEEKLY | {"cron": "0 7 * * 1"}]})["schedules"][0]
    assert (changed["action"], changed["state"]) == ("changed", "paused")
    resumed = publish({"schedules": [WEEKLY | {"cron": "0 7 * * 1", "paused": False}]})["schedules"][0]
    assert (resumed["action"], resumed["state"], resumed["id"]) == ("resumed", "active", changed["id"])
    paused = publish({"schedules": [WEEKLY | {"cron": "0 7 * * 1", "paused": True}]})["schedules"][0]
    assert (paused["action"], paused["state"], paused["id"]) == ("paused", "paused", changed["id"])
    assert [entry.status for entry in kubeflow.recurring.values()] == ["DISABLED"]


def test_others_are_left_alone_and_own_ones_pruned_when_asked(kubeflow: StandIn, publish: Publish, command: Any):
    by_hand = ("--every", "1d", "--set", "data=s3://bucket/x.csv")
    command("schedule", "create", "by-hand", *by_hand)
    publish({"schedules": [WEEKLY]}, "--owner", "other/team")
    publish({"schedules": [OFTEN, {**OFTEN, "name": "old"}]}, "--owner", "mine")
    assert actions(publish({"schedules": [OFTEN]}, "--owner", "mine")) == {"often": "unchanged"}
    assert len(kubeflow.recurring) == 4
    pruned = publish({"schedules": [OFTEN]}, "--owner", "mine", "--prune")
    assert actions(pruned) == {"often": "unchanged", "old": "deleted"}
    assert sorted(e.display_name for e in kubeflow.recurring.values()) == ["by-hand", "often", "weekly"]

    taken = publish({"schedules": [WEEKLY]}, "--owner", "mine", code=2)
    assert "other/team" in taken["problems"][0]["what"]
    assert changes(kubeflow) == []
    # One that a person made is taken over: the file names it.
    adopted = publish({"schedules": [OFTEN, {**OFTEN, "name": "by-hand"}]}, "--owner", "mine")
    assert actions(adopted)["by-hand"] == "changed"
    assert "owner" in adopted["schedules"][1]["changes"]


def test_schedules_follow_a_new_release(kubeflow: StandIn, publish: Publish, monkeypatch: pytest.MonkeyPatch):
    publish(FILE)
    compiled = uploads.compiled_yaml
    monkeypatch.setattr(uploads, "compiled_yaml", lambda *a: compiled(*a).replace("finetune-2", "finetune-x"))
    upgraded = publish(FILE)
    assert [one["uploaded"] for one in upgraded["pipelines"]] == [True, True]
    assert set(actions(upgraded).values()) == {"unchanged"}
    assert len(kubeflow.versions) == 4
    # Back at the older release: what schedules follow must have its content again.
    monkeypatch.setattr(uploads, "compiled_yaml", compiled)
    back = publish(FILE)
    assert [one["uploaded"] for one in back["pipelines"]] == [True, True]
    for pipeline in back["pipelines"]:
        own = [version for version in kubeflow.versions.values() if version.pipeline_id == pipeline["id"]]
        assert [v.pipeline_spec == own[0].pipeline_spec for v in own] == [True, False, True]


def test_a_failure_in_the_middle_is_continued(kubeflow: StandIn, publish: Publish):
    create, refused = kubeflow.recurring_run_service_create_recurring_run, []

    def once(body: Any) -> Any:
        if body.display_name == "often" and not refused:
            refused.append(body)
            raise Refused(503, "not now")
        return create(body)

    kubeflow.recurring_run_service_create_recurring_run = once
    assert "cannot answer now" in publish(FILE, code=1)["message"]
    assert actions(publish(FILE)) == {"weekly": "unchanged", "often": "created"}


def test_a_cluster_of_one_s_own_stands_beside_the_file(kubeflow: StandIn, publish: Publish, tmp_path: Path):
    (tmp_path / "ours.yaml").write_text("preset: base\nimages: {registry: registry.example.com/team}\n")
    made = publish({"pipelines": [{"cluster": "ours.yaml"}], "schedules": [OFTEN | {"cluster": "ours.yaml"}]})
    assert [one["pipeline"] for one in made["pipelines"]] == ["stillhouse-train-and-deploy-ours"]
    (version,) = kubeflow.versions.values()
    assert "registry.example.com/team/stillhouse-train" in json.dumps(version.pipeline_spec)


def test_everything_wrong_is_told_before_anything_is_sent(kubeflow: StandIn, publish: Publish, tmp_path: Path):
    wrong = publish(
        {
            "pipelines": [{"cluster": "absent.yaml"}],
            "schedules": [
                WEEKLY | {"cron": "0 25 * * *", "parameters": {"data": "x.csv", "sead": 1}},
                OFTEN | {"name": "weekly", "max_concurrency": 0, "preset": "huge"},
            ],
        },
        code=2,
    )
    where = [problem["where"] for problem in wrong["problems"]]
    assert where[0] == "publish.yaml: pipelines.0: cluster"
    ends = {entry.rsplit(": ", 1)[1] for entry in where if "schedules.weekly" in entry}
    assert ends >= {"cron", "data", "sead", "name", "max_concurrency", "preset"}
    assert all("--" not in problem["where"] + problem["remedy"] for problem in wrong["problems"]), wrong["problems"]
    assert kubeflow.requests == []
    (tmp_path / "gpu.yaml").write_text("preset: base\n")
    clash = publish({"pipelines": [{"cluster": "gpu"}, {"cluster": "./gpu.yaml"}]}, code=2)
    assert "of the release's own cluster gpu" in clash["problems"][0]["what"]


@pytest.mark.parametrize(
    ("body", "where", "what"),
    [
        ("pipelines: [", "publish.yaml", "is not YAML"),
        ("[]", "publish.yaml", "is not a mapping"),
        ("pipelines: []", "publish.yaml", "lists nothing"),
        ("schedule: []", "publish.yaml: schedule", "is not known here"),
        ("schedules: [{name: a, corn: x}]", "publish.yaml: schedules.0.corn", "is not known here"),
        ("schedules: [{every: 1d}]", "publish.yaml: schedules.0.name", "is not given"),
        ("schedules: [{name: 7}]", "publish.yaml: schedules.0.name", "is not text"),
        ("schedules: [{name: a, catch_up: soon}]", "publish.yaml: schedules.0.catch_up", "is not true or false"),
        ("pipelines: []\npipelines: []", "publish.yaml: line 2", "a second time"),
    ],
)
def test_a_file_that_is_none(publish: Publish, body: str, where: str, what: str):
    problem = publish(body, code=2)["problems"][0]
    assert problem["where"] == where and what in problem["what"]


@pytest.mark.slow
def test_for_people(kubeflow: StandIn, tmp_path: Path):
    path = tmp_path / "publish.yaml"
    path.write_text(yaml.safe_dump(FILE))
    done = CliRunner().invoke(app, ["publish", str(path), "--owner", "helm/x"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "✓ pipeline stillhouse-train-and-deploy-gpu, version" in done.stdout
    assert "✓ schedule weekly, Monday at 06:00 (Asia/Tokyo), active: created" in done.stdout
    again = CliRunner().invoke(app, ["publish", str(path), "--owner", "helm/x", "--json"], catch_exceptions=False)
    assert actions(json.loads(again.stdout)) == {"weekly": "unchanged", "often": "unchanged"}
    with pytest.raises(InputError, match="cannot be read"):
        CliRunner().invoke(app, ["publish", str(tmp_path / "absent.yaml")], catch_exceptions=False)
