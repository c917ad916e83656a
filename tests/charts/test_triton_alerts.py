"""charts/triton: the alerts, by Prometheus' own promtool with made-up series, and the dashboard's queries."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "triton"
CI = CHART / "ci"
RELEASE = 'namespace="serving",stillhouse_release="reviews"'
STABLE = f'{RELEASE},stillhouse_track="stable",pod="reviews-7d4-x2x9z",model="reviews",version="7"'
CANARY = STABLE.replace("stable", "canary").replace("reviews-7d4", "reviews-canary-5b6").replace('"7"', '"8"')
POD = 'namespace="serving",pod="reviews-7d4f9c-x2x9z"'


@pytest.fixture(scope="module")
def promtool() -> Path:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not on the path; it comes with Prometheus (Debian's package `prometheus`)")
    return Path(found)


@pytest.fixture(scope="module")
def rules(render) -> dict[str, Any]:
    """What the PrometheusRule of a release holds, with the default limits."""
    (rule,) = (
        m for m in render("triton", CI / "canary-values.yaml", "monitoring.prometheusRule.enabled=true")
        if m["kind"] == "PrometheusRule"
    )  # fmt: skip
    spec: dict[str, Any] = rule["spec"]
    return spec


def firing(
    promtool: Path, rules: dict[str, Any], folder: Path, series: dict[str, str], expected: list[dict[str, str]], at: str
) -> None:
    """Has promtool assert that these alerts, given by their labels, fire after a while, and no others."""
    groups = json.loads(json.dumps(rules["groups"]))
    for rule in groups[0]["rules"]:
        del rule["annotations"]  # compared word by word otherwise
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    labels = {rule["alert"]: rule["labels"] for rule in groups[0]["rules"]}
    tests = [
        {
            "eval_time": at,
            "alertname": name,
            "exp_alerts": [
                {"exp_labels": {**own, **{k: v for k, v in alert.items() if k != "alertname"}}}
                for alert in expected
                if alert["alertname"] == name
            ],
        }
        for name, own in labels.items()
    ]
    assert {alert["alertname"] for alert in expected} <= set(labels)
    inputs = [{"series": key, "values": values} for key, values in series.items()]
    body = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "15s",
        "tests": [{"interval": "15s", "input_series": inputs, "alert_rule_test": tests}],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(body))
    done = subprocess.run([str(promtool), "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


WELL = {
    # 100 requests a second for an hour, at 15 s a sample, which wait little and are never refused
    f"nv_inference_request_success{{{STABLE}}}": "0+1500x240",
    f'nv_inference_request_failure{{{STABLE},reason="OTHER"}}': "0x240",
    f'nv_inference_request_failure{{{STABLE},reason="CANCELED"}}': "0x240",
    f"stillhouse_requests_failed_total{{{STABLE}}}": "0x240",
    f"stillhouse_requests_total{{{STABLE}}}": "0+1500x240",
    f"stillhouse_requests_refused_total{{{STABLE}}}": "0x240",
    f"stillhouse_queue_seconds_total{{{STABLE}}}": "0+3x240",
    f"stillhouse_compute_seconds_total{{{STABLE}}}": "0+12x240",
    f'nv_inference_request_summary_us{{{STABLE},quantile="0.99"}}': "90000x240",
    f'kube_pod_container_status_restarts_total{{{POD},container="triton"}}': "1x240",
    f'kube_pod_init_container_status_waiting_reason{{{POD},container="fetch",reason="PodInitializing"}}': "1x240",
    'kube_deployment_status_condition{namespace="serving",deployment="reviews",condition="Progressing",status="false"}':
        "0x240",
}  # fmt: skip
CANARY_WELL = {key.replace(STABLE, CANARY): values for key, values in WELL.items() if STABLE in key}
ON_STABLE = {"stillhouse_track": "stable"}
ON_CANARY = {"stillhouse_track": "canary"}


@pytest.mark.parametrize(
    ("changed", "alerts", "at"),
    [
        pytest.param({}, [], "30m", id="all is well"),
        pytest.param(CANARY_WELL, [], "30m", id="all is well with a canary"),
        pytest.param(
            {f"nv_inference_request_success{{{STABLE}}}": "0+1500x4 stale _x235"},
            [{"alertname": "StillhouseGone", "model": "reviews"}], "10m", id="nobody reports"),
        pytest.param(
            {f"stillhouse_requests_failed_total{{{STABLE}}}": "0+30x240"},
            [{"alertname": "StillhouseErrors", **ON_STABLE}], "15m", id="the encoder fails at 2% of the requests"),
        pytest.param(
            {f"stillhouse_requests_failed_total{{{STABLE}}}": "0+6x240"},
            [], "15m", id="the encoder fails at 0.4%"),
        pytest.param(
            {f'nv_inference_request_failure{{{STABLE},reason="CANCELED"}}': "0+300x240"},
            [], "15m", id="callers that give up are no errors"),
        pytest.param(
            {**CANARY_WELL, f'nv_inference_request_failure{{{CANARY},reason="OTHER"}}': "0+1500x240"},
            [{"alertname": "StillhouseErrors", **ON_CANARY}], "15m", id="half of the canary's reach nobody"),
        pytest.param(
            {f'nv_inference_request_summary_us{{{STABLE},quantile="0.99"}}': "1500000x240"},
            [{"alertname": "StillhouseSlow", **ON_STABLE}], "15m", id="slow"),
        pytest.param(
            {f'nv_inference_request_summary_us{{{STABLE},quantile="0.99"}}': "1500000x20 90000x220"},
            [], "15m", id="slow for five minutes"),
        pytest.param(
            {f"stillhouse_queue_seconds_total{{{STABLE}}}": "0+30x240"},
            [{"alertname": "StillhouseQueue", **ON_STABLE}], "20m", id="waiting more than computing"),
        pytest.param(
            {f"stillhouse_requests_refused_total{{{STABLE}}}": "0+60x240"},
            [{"alertname": "StillhouseRefusing", **ON_STABLE}], "15m", id="refusing"),
        pytest.param(
            {f"stillhouse_requests_refused_total{{{STABLE}}}": "0+1500x240",
             f"stillhouse_requests_total{{{STABLE}}}": "9x240"},
            [{"alertname": "StillhouseRefusing", **ON_STABLE}], "15m", id="refusing everybody"),
        pytest.param(
            {f'kube_pod_container_status_restarts_total{{{POD},container="triton"}}': "1x20 1+1x10 11x210"},
            [{"alertname": "StillhouseRestarts", "pod": "reviews-7d4f9c-x2x9z", "container": "triton"}],
            "20m", id="restarts"),
        pytest.param(
            {f'kube_pod_init_container_status_waiting_reason{{{POD},container="fetch",reason="CrashLoopBackOff"}}':
                 "1x240"},
            [{"alertname": "StillhouseFetch", "pod": "reviews-7d4f9c-x2x9z"}], "5m", id="a version cannot be fetched"),
        pytest.param(
            {key: "0x4 1x236" for key in WELL if "Progressing" in key},
            [{"alertname": "StillhouseRollout", "deployment": "reviews", "condition": "Progressing",
              "status": "false"}], "10m", id="a rollout that is stuck"),
        pytest.param(
            {'nv_inference_request_failure{namespace="other",stillhouse_release="reviews",stillhouse_track="stable",'
             'model="reviews",reason="OTHER"}': "0+1500x240",
             'kube_pod_container_status_restarts_total{namespace="serving",pod="reviews-api-7d4-x2x9z",'
             'container="triton"}': "1+1x240"},
            [], "15m", id="what others have is not ours"),
    ],
)  # fmt: skip
def test_alerts_fire_for_what_they_name(
    promtool: Path, rules: dict[str, Any], tmp_path: Path, changed: dict[str, str], alerts: list[Any], at: str
):
    firing(promtool, rules, tmp_path, {**WELL, **changed}, alerts, at)


def test_the_words_of_an_alert(promtool: Path, rules: dict[str, Any], tmp_path: Path):
    """Summaries with their values filled in, as people get them."""
    slow = next(rule for rule in rules["groups"][0]["rules"] if rule["alert"] == "StillhouseSlow")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "slow", "rules": [slow]}]}))
    summary = "The slowest pod of reviews takes 1500 ms for a hundredth of its requests (stable)."
    alert = {
        "exp_labels": {**slow["labels"], **ON_STABLE},
        "exp_annotations": {"summary": summary, "runbook": slow["annotations"]["runbook"]},
    }
    body = {
        "rule_files": ["rules.yaml"],
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f'nv_inference_request_summary_us{{{STABLE},quantile="0.99"}}', "values": "1500000x240"}
                ],
                "alert_rule_test": [{"eval_time": "20m", "alertname": "StillhouseSlow", "exp_alerts": [alert]}],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(body))
    done = subprocess.run([str(promtool), "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_commands_of_runbooks_are_whole(rules: dict[str, Any]):
    """At night they are pasted as they are; what is in double braces is filled in by Prometheus."""
    commands = {
        command
        for rule in rules["groups"][0]["rules"]
        for command in re.findall(r"`([^`]+)`", rule["annotations"]["runbook"])
    }
    assert len(commands) >= 8
    for command in commands:
        assert re.match(r"(kubectl|helm|stillhouse rollback) -n serving ", command), command
        assert "POD" not in command
        assert not re.search(r"(describe \S+|logs)( -\S+)*$", command), command


@pytest.mark.parametrize("name", ["cpu", "everything"])
def test_prometheus_takes_the_rules(promtool: Path, render, tmp_path: Path, name: str):
    (rule,) = (m for m in render("triton", CI / f"{name}-values.yaml") if m["kind"] == "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    done = subprocess.run([str(promtool), "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for alert in rule["spec"]["groups"][0]["rules"]:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"] and len(alert["annotations"]["runbook"]) > 80


def test_limits_are_values(render):
    settings = ["errorRatio=0.5", "p99Milliseconds=77", "queueRatio=3.25", "refusedRatio=0.125", "restarts=9"]
    flags = [f"monitoring.prometheusRule.{setting}" for setting in ["enabled=true", *settings]]
    (rule,) = (
        m for m in render("triton", CI / "minimal-values.yaml", *flags) if m["kind"] == "PrometheusRule"
    )  # fmt: skip
    limits = [re.findall(r"> ([\d.]+)$", alert["expr"]) for alert in rule["spec"]["groups"][0]["rules"]]
    assert limits == [[], ["0.5"], ["77"], ["3.25"], ["0.125"], ["9"], ["0"], ["0"]]


def test_the_dashboard(promtool: Path, render, tmp_path: Path):
    """Every query is one that Prometheus takes, on metrics that a release has, and the links between panels hold."""
    (config,) = (
        m for m in render("triton", CI / "everything-values.yaml")
        if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "verdicts-dashboard"
    )  # fmt: skip
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads(config["data"]["stillhouse-triton.json"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) >= 10
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    rules = []
    for panel in dashboard["panels"]:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables
            expression = re.sub(r"\$(\w+)", lambda m: "5m" if m[1] == "__rate_interval" else "x", target["expr"])
            rules.append({"record": f"panel:{len(rules)}", "expr": expression})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([str(promtool), "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
