"""The job that charts/stillhouse renders, run as it is rendered, against a stand-in of Kubeflow Pipelines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))  # for kfp_stand_in
from kfp_stand_in import StandIn, serving

pytestmark = pytest.mark.slow

VALUES = Path(__file__).resolve().parents[2] / "charts" / "stillhouse" / "ci"
TOKEN = "the-projected-token"


def run(render: Any, world: StandIn, folder: Path, values: Any, *sets: str) -> subprocess.CompletedProcess[str]:
    """Render the chart and run the job's container; what it mounts lies in a folder, and nothing else is changed."""
    endpoint = world.url.replace("localhost", "127.0.0.1")
    manifests = render("stillhouse", values, f"kubeflow.endpoint={endpoint}", *sets, namespace="team", release="house")
    (job,) = [m for m in manifests if m["kind"] == "Job"]
    name = job["metadata"]["name"]
    (config,) = [m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == name]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    assert volumes["publish"]["configMap"]["name"] == name
    for file, text in config["data"].items():
        (folder / file).write_text(text)
    paths = {mounts["publish"]: str(folder), mounts["tmp"]: str(folder)}
    if "token" in mounts:
        (source,) = [one["serviceAccountToken"] for one in volumes["token"]["projected"]["sources"]]
        assert source["audience"] == "pipelines.kubeflow.org"
        (folder / source["path"]).write_text(TOKEN)
        paths[mounts["token"]] = str(folder)

    def here(text: str) -> str:
        for inside, outside in paths.items():
            if text == inside or text.startswith(f"{inside}/"):
                return outside + text[len(inside) :]
        return text

    environment = {entry["name"]: here(entry["value"]) for entry in container["env"]}
    assert container["command"] == ["stillhouse", "publish"]
    command = [sys.executable, "-m", "stillhouse.cli.main", "publish", *map(here, container["args"])]
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, cwd=folder)


def schedules(world: StandIn) -> dict[str, Any]:
    return {entry.display_name: entry for entry in world.recurring.values()}


def test_install_upgrade_and_removal_in_a_profile(render: Any, tmp_path: Path):
    values = VALUES / "everything-values.yaml"
    no_ca = "kubeflow.caSecret="  # the stand-in speaks plain HTTP here
    with serving() as world:
        world.token, world.namespace = TOKEN, "team"
        done = run(render, world, tmp_path, values, no_ca)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {p.display_name for p in world.pipelines.values()} == {"stillhouse-train-and-deploy-cpu", "verdicts"}
        made = schedules(world)
        assert set(made) == {"verdicts-weekly", "topics-often"}
        weekly = made["verdicts-weekly"]
        assert weekly.namespace == "team"
        assert weekly.trigger.cron_schedule.cron == "0 0 6 * * 1"  # the cluster's zone is the schedule's
        assert weekly.runtime_config.parameters["node_selector"] == {"pool": "a100"}
        assert weekly.runtime_config.parameters["gpus_per_node"] == 2
        assert made["topics-often"].status == "DISABLED"
        assert "published by: helm/team/house" in weekly.description

        again = run(render, world, tmp_path, values, no_ca)
        assert again.returncode == 0 and schedules(world).keys() == made.keys()
        assert {e.recurring_run_id for e in schedules(world).values()} == {e.recurring_run_id for e in made.values()}
        assert again.stdout.count(": unchanged") == 2 and again.stdout.count(": uploaded before") == 2

        # What is no longer listed goes, and what somebody else made stays.
        other = tmp_path / "fewer.yaml"
        other.write_text(yaml.safe_dump({"publish": {"schedules": []}}))
        weekly.description = weekly.description.replace("published by: helm/team/house", "")
        fewer = run(render, world, tmp_path, [values, other], no_ca)
        assert fewer.returncode == 0, fewer.stderr
        assert set(schedules(world)) == {"verdicts-weekly"}


def test_kubeflow_pipelines_alone_without_profiles(render: Any, tmp_path: Path):
    with serving() as world:
        done = run(render, world, tmp_path, VALUES / "cpu-values.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(schedules(world)) == {"weekly"}
        assert all(not request.query.get("namespace") for request in world.requests)


def test_what_is_wrong_with_a_schedule_fails_the_job_with_all_of_it(render: Any, tmp_path: Path):
    values = tmp_path / "values.yaml"
    parameters = {"data": "reviews.csv", "epochz": 3}
    schedule = {"name": "weekly", "cluster": "cpu", "cron": "0 25 * * 1", "parameters": parameters}
    values.write_text(yaml.safe_dump({"publish": {"schedules": [schedule]}}))
    with serving() as world:
        done = run(render, world, tmp_path, [VALUES / "minimal-values.yaml", values])
        assert done.returncode == 2
        for where in ("schedules.weekly: cron", "schedules.weekly: data", "schedules.weekly: epochz"):
            assert where in done.stderr
        assert world.requests == []


def test_it_fails_where_kubeflow_does_not_answer(render: Any, tmp_path: Path):
    with serving() as world:
        pass
    done = run(render, world, tmp_path, VALUES / "minimal-values.yaml")
    assert done.returncode == 1 and "cannot be reached" in done.stderr
