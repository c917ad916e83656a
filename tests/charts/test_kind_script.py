"""docs/kind.sh, with commands that note how they were called in place of those that need a container registry.

Each call of helm is then given to the real helm to render, each of stillhouse to the real command line to parse, and
what goes to kubectl is checked as manifests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from kube_schemas import OLDEST, kubernetes_faults
from pod_security import pod_specs, violations

from stillhouse.cli.main import app
from stillhouse.deploy.kubernetes.settings import KubernetesSettings
from stillhouse.pipelines.parameters import arguments_for

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "kind.sh"
SHIM = """#!/usr/bin/env python3
import json, os, pathlib, shutil, sys, time
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
folder = pathlib.Path(os.environ["CALLS"])
text = "" if sys.stdin is None or "-" not in arguments else sys.stdin.read()
files = {a: pathlib.Path(a).read_text() for a in arguments if a.endswith("triton.yaml")}
call = {"command": [name, *arguments], "input": text, "files": files, "mlflow": os.environ.get("MLFLOW_TRACKING_URI")}
with (folder / "calls.jsonl").open("a") as log:
    log.write(json.dumps(call) + "\\n")
if "port-forward" in arguments:
    print("Forwarding from 127.0.0.1", flush=True)
    time.sleep(30)
absent = [["docker", "image", "inspect"], ["kind", "get", "clusters"]]
if "fresh" in os.environ["WORLD"] and [name, *arguments[:2]] in absent or "secret" in arguments and "get" in arguments:
    sys.exit(1)
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Runs the script; returns its exit code and the calls that it made."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("docker", "kind", "kubectl", "helm", "make", "stillhouse"):
        (folder / name).write_text(SHIM)
        (folder / name).chmod(0o755)

    def script(*arguments: str, world: str = "fresh", **variables: str) -> tuple[int, list[Any]]:
        log = tmp_path / "calls.jsonl"
        log.unlink(missing_ok=True)
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(tmp_path), "WORLD": world,
            "HOME": str(tmp_path), "STILLHOUSE_HOME": str(tmp_path / "home"), **variables,
        }  # fmt: skip
        done = subprocess.run(
            [SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        return done.returncode, calls

    return script


def of(calls: list[Any], *beginning: str) -> list[Any]:
    return [call for call in calls if call["command"][: len(beginning)] == list(beginning)]


def parsed(arguments: list[str]) -> list[str]:
    """The names of the commands, once the command line has taken all of the arguments; else a usage error."""
    command, context, names = typer.main.get_command(app), None, []
    name, rest = "stillhouse", list(arguments)
    while True:
        context = command.make_context(name, rest, parent=context)
        if not hasattr(command, "resolve_command"):
            return names
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)


def rendered(helm: Path, call: Any) -> list[Any]:
    """What the real helm renders of a call of `helm upgrade --install`."""
    words = call["command"][1:]
    assert words[:2] == ["upgrade", "--install"]
    command = [helm, "template", *words[2:], "--kube-version=1.29.0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def test_the_shell_finds_nothing_wrong_with_it():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_up_makes_everything_in_order(run: Any, helm: Path, render: Any, tmp_path: Path):
    code, calls = run("up")
    assert code == 0
    order = [" ".join(call["command"][:3]) for call in calls]
    first = [order.index(step) for step in (
        "kind create cluster", "make image-train TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu",
        "kind load docker-image", "helm upgrade --install", "stillhouse run --preset",
        "stillhouse deploy models:/reviews@challenger", "stillhouse predict --url",
    )]  # fmt: skip
    assert first == sorted(first)
    assert len(of(calls, "kind", "load")) == len(of(calls, "make")) == 3

    (install,) = of(calls, "helm")
    manifests = rendered(helm, install)
    (deployment,) = [m for m in manifests if m["kind"] == "Deployment"]
    assert not [m for m in manifests if m["kind"] == "Job"]
    applied = [m for call in of(calls, "kubectl") for m in yaml.safe_load_all(call["input"]) if m]
    made = {(m["kind"], m["metadata"]["name"]): m for m in applied}
    assert [fault for m in applied if (fault := kubernetes_faults(m, OLDEST))] == []
    for name, pod in pod_specs(applied):
        assert violations(pod) == [], name
    # What the chart is told to use is there.
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert any("@" not in word and "://postgresql:5432/mlflow?sslmode=disable" in word for word in arguments)
    assert made["Service", "postgresql"]["spec"]["ports"][0]["port"] == 5432
    (artifacts,) = [v for v in deployment["spec"]["template"]["spec"]["volumes"] if v["name"] == "artifacts"]
    assert ("PersistentVolumeClaim", artifacts["persistentVolumeClaim"]["claimName"]) in made
    secrets = [call["command"] for call in of(calls, "kubectl") if "secret" in call["command"]]
    assert any("create" in command and "stillhouse-mlflow-database" in command for command in secrets)
    assert not any("--from-literal=password" in word for command in secrets for word in command)

    (training,) = of(calls, "stillhouse", "run")
    assert parsed(training["command"][1:]) == ["run"]
    settings = [b for a, b in zip(training["command"], training["command"][1:], strict=False) if a == "--set"]
    assert arguments_for("demo", settings)[1] == []
    assert training["mlflow"] == "http://localhost:5000"

    (deploy,) = of(calls, "stillhouse", "deploy")
    assert parsed(deploy["command"][1:]) == ["deploy"]
    (values,) = [yaml.safe_load(text) for text in deploy["files"].values()]
    (service,) = [m for m in manifests if m["kind"] == "Service"]
    host, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    assert values["mlflow"]["trackingUri"] == f"http://{host}.{namespace}.svc:5000"
    settings_ = KubernetesSettings(
        model_name="reviews", tracking_uri="http://localhost:5000", namespace="stillhouse-serving", values=values
    )
    assert settings_.problems() == []
    # As deploying completes them.
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values | {"model": {"name": "reviews", "version": "1", "manifestSha256": "0" * 64}}))
    pods = [pod for _, pod in pod_specs(render("triton", path))]
    used = {c["image"] for pod in pods for c in [*pod.get("initContainers", []), *pod["containers"]]}
    loaded = {call["command"][-1] for call in of(calls, "kind", "load")}
    used |= {c["image"] for c in deployment["spec"]["template"]["spec"]["containers"]}
    assert used == loaded

    (asked,) = of(calls, "stillhouse", "predict")
    assert parsed(asked["command"][1:]) == ["predict"]


def test_again_it_makes_nothing_that_is_there(run: Any):
    code, calls = run("up", world="there")
    assert code == 0
    assert of(calls, "make") == []


def test_with_kubeflow_the_pipeline_is_published(run: Any, helm: Path):
    code, calls = run("up", KUBEFLOW="2.15.0")
    assert code == 0
    manifests = rendered(helm, of(calls, "helm")[0])
    (job,) = [m for m in manifests if m["kind"] == "Job"]
    assert job["metadata"]["namespace"] == "kubeflow"
    assert "KFP_NAMESPACE" not in json.dumps(job)
    (config,) = [m for m in manifests if m["kind"] == "ConfigMap" and "publish.yaml" in m["data"]]
    assert yaml.safe_load(config["data"]["publish.yaml"])["pipelines"] == [{"cluster": "cpu"}]
    kustomized = [word for call in of(calls, "kubectl") for word in call["command"] if "kustomize/" in word]
    assert all(word.endswith("?ref=2.15.0") for word in kustomized) and len(kustomized) == 2


@pytest.mark.parametrize("command", ["status", "deploy", "ask", "down"])
def test_every_command_is_one_that_there_is(run: Any, command: str):
    code, calls = run(command)
    assert code == 0
    for call in of(calls, "stillhouse"):
        assert parsed(call["command"][1:])[0] in ("status", "releases", "run", "deploy", "predict")


def test_without_a_command_it_says_what_there_is(run: Any):
    assert run() == (2, [])
