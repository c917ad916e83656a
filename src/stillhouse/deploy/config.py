"""What the deploy step is told, and whether it can be done here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.deploy.kubernetes.settings import KubernetesSettings
from stillhouse.errors import Problem
from stillhouse.serving.repository import name_problems
from stillhouse.serving.server import server_status
from stillhouse.serving.triton import Ports, platform_problems
from stillhouse.state import home as home_folder

__all__ = ["CONFLICTS", "TARGETS", "DeployConfig", "container_marker", "version_problems"]

TARGETS = ("none", "local", "kubernetes")
CONFLICTS = ("wait", "yield")


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """Settings of the deploy step."""

    model_name: str
    """The registered and served name."""
    version: str
    """The registered version to deploy, a positive whole number; empty while there is none yet."""
    tracking_uri: str
    """MLflow, where the version is registered."""
    deploy_target: str = "local"
    """`none`, `local` or `kubernetes`."""
    deploy_conflict: str = "wait"
    """Where another run is deploying the same model: `wait` for its end, or `yield`."""
    grpc_port: int = 8001
    """The local endpoint's gRPC port, on loopback."""
    http_port: int = 8000
    """HTTP port, on loopback; 0 leaves it off."""
    metrics_port: int = 8002
    """Port of the Prometheus metrics, on loopback; 0 leaves them off."""
    home: Path = field(default_factory=home_folder)
    """State folder; `STILLHOUSE_HOME`, else `.stillhouse`."""
    serving_namespace: str = ""
    """On Kubernetes, the namespace; empty takes the deployer's, or that of the kubeconfig's context."""
    serving_values: Mapping[str, Any] = field(default_factory=dict)
    """Helm values for charts/triton, beside those that deploying sets."""
    canary_weight: int = 0
    """Percent of the requests that a new version gets first, while it is judged; 0 replaces the old one at once."""
    canary_minutes: float = 15
    """How long a canary is watched."""
    prometheus_url: str = ""
    """Where a canary's metrics are asked for; empty judges it by its answers to test rows alone."""
    rollout_timeout_minutes: float = 20
    """How long a release may take to become ready."""
    release: str = ""
    """Name of the Helm release; empty makes one of the model's name."""
    kube_context: str = ""
    """Context of the kubeconfig; empty takes the present one."""

    @property
    def ports(self) -> Ports:
        """The local endpoint's ports."""
        return Ports(grpc=self.grpc_port, http=self.http_port, metrics=self.metrics_port)

    @property
    def kubernetes(self) -> KubernetesSettings:
        """What a deployment to Kubernetes goes by."""
        return KubernetesSettings(
            model_name=self.model_name,
            tracking_uri=self.tracking_uri,
            namespace=self.serving_namespace,
            values=self.serving_values,
            canary_weight=self.canary_weight,
            canary_minutes=self.canary_minutes,
            prometheus_url=self.prometheus_url,
            timeout_minutes=self.rollout_timeout_minutes,
            release=self.release,
            context=self.kube_context,
        )

    def problems(self) -> list[Problem]:
        """Everything that would keep this deployment from being made here, the state of this machine included."""
        found = name_problems(self.model_name)
        found += version_problems("version", self.version)
        if self.deploy_conflict not in CONFLICTS:
            remedy = f"Choose one of: {', '.join(CONFLICTS)}."
            found.append(Problem("deploy_conflict", f"{self.deploy_conflict!r} is unknown.", remedy))
        if self.deploy_target not in TARGETS:
            remedy = f"Choose one of: {', '.join(TARGETS)}."
            return [*found, Problem("deploy_target", f"{self.deploy_target!r} is unknown.", remedy)]
        if self.deploy_target == "kubernetes":
            found += self.kubernetes.problems()
        if self.deploy_target == "local":
            if marker := container_marker():
                what = f"'local' was asked for inside a container ({marker}): its server would end with the container."
                found.append(Problem("deploy_target", what, "Choose 'none', and serve from where the model is used."))
            found += platform_problems()
            if numbers := self.ports.problems():
                return [*found, *numbers]
            # What our own server listens on is free to us: it is stopped before the next one starts.
            serving = server_status(self.home)
            ours = serving.ports if serving and serving.status not in ("dead", "failed") else None
            found += self.ports.taken(except_ports=(ours.grpc, ours.http, ours.metrics) if ours else ())
        return found


def version_problems(where: str, version: str) -> list[Problem]:
    """What is wrong with the number of a registered version; none is no problem."""
    if not version or re.fullmatch(r"[1-9][0-9]{0,17}", version):
        return []
    return [Problem(where, f"{version!r} is not a positive whole number.")]


# Inode numbers of the namespaces that the kernel makes at boot (include/linux/proc_ns.h).
_INITIAL_NAMESPACES = {"cgroup": 0xEFFFFFFB, "ipc": 0xEFFFFFFF, "pid": 0xEFFFFFFC, "uts": 0xEFFFFFFE}


def container_marker(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> str:
    """What tells that this process runs in a container; empty if nothing does.

    A marker file alone does not tell: a virtual machine whose disk was made from a container image keeps it. In a
    container at least one of the process's namespaces is not the kernel's own.
    """
    if "KUBERNETES_SERVICE_HOST" in (os.environ if environment is None else environment):
        return "KUBERNETES_SERVICE_HOST is set"
    for marker in (".dockerenv", "run/.containerenv"):
        if (root / marker).exists() and not _in_initial_namespaces(root):
            return f"there is a /{marker}"
    return ""


def _in_initial_namespaces(root: Path) -> bool:
    for name, inode in _INITIAL_NAMESPACES.items():
        try:
            if str((root / "proc/self/ns" / name).readlink()) != f"{name}:[{inode}]":
                return False
        except OSError:
            return False
    return True
