"""How many machines and GPUs a training runs on, and where they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillhouse.errors import Problem
from stillhouse.storage import local_path, store_problems

__all__ = ["CPU", "ScaleConfig", "in_cluster", "in_pod", "local_path", "toleration_problems"]

CPU = re.compile(r"[1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*|[1-9][0-9]*m")
_MEMORY = re.compile(r"[1-9][0-9]*(\.[0-9]+)?(E|Ei|P|Pi|T|Ti|G|Gi|M|Mi|K|Ki)?")
_RESOURCE = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_TOLERATION_FIELDS = {"key", "operator", "value", "effect", "tolerationSeconds"}
_OPERATORS = ("Equal", "Exists")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def in_cluster() -> bool:
    """Whether this process is a step on a cluster: Kubeflow Pipelines tells each step the name of its pod."""
    return bool(os.environ.get("KFP_POD_NAME"))


def in_pod() -> bool:
    """Whether this process runs in a pod: a step's own, or one of a TrainJob, which knows nothing of the step."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """What a training asks of a cluster."""

    num_nodes: int = 1
    """Machines."""
    gpus_per_node: int = 0
    """GPUs of each machine, one process each; 0 trains on the CPU."""
    gpu_type: str = "nvidia.com/gpu"
    """Kubernetes resource name of the GPUs."""
    train_cpu: str = "2"
    """CPUs of each machine, as a Kubernetes quantity: `2`, `0.5` or `500m`."""
    train_memory: str = "8Gi"
    """Memory of each machine, as a Kubernetes quantity: `8Gi`."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes."""
    tolerations: Sequence[Mapping[str, Any]] = ()
    """Taints that are tolerated, each a Kubernetes toleration."""
    checkpoint_dir: str = ""
    """Where several machines meet: an object-store URI, or a path on a volume that all of them mount."""

    @property
    def distributed(self) -> bool:
        """Whether several processes train together: on a cluster under Kubeflow Trainer, in pods of their own."""
        return self.num_nodes > 1 or self.gpus_per_node > 1

    @property
    def processes(self) -> int:
        """Processes of each machine."""
        return max(1, self.gpus_per_node)

    @property
    def step_gpus(self) -> int:
        """GPUs that the step's own pod needs: none where it only starts and watches others."""
        return 0 if self.distributed else self.gpus_per_node

    def problems(self) -> list[Problem]:
        """Everything wrong with the values."""
        found = []
        for name, value, least in (("num_nodes", self.num_nodes, 1), ("gpus_per_node", self.gpus_per_node, 0)):
            if value < least:
                found.append(Problem(name, f"{value} is too small.", f"Give a whole number from {least}."))
        for name, text, form, example in (
            ("train_cpu", self.train_cpu, CPU, "2 or 500m"),
            ("train_memory", self.train_memory, _MEMORY, "8Gi"),
            ("gpu_type", self.gpu_type, _RESOURCE, "nvidia.com/gpu"),
        ):
            if not form.fullmatch(text):
                what = "resource name" if name == "gpu_type" else "quantity"
                found.append(Problem(name, f"{text!r} is not a Kubernetes {what}.", f"Write it as {example}."))
        for key, label in self.node_selector.items():
            if not key or not isinstance(label, str):
                what = f"the label {key!r} has the value {label!r}."
                found.append(Problem("node_selector", what, 'Write text for both, as in {"pool": "gpu"}.'))
        found += [problem for toleration in self.tolerations for problem in toleration_problems(toleration)]
        if self.distributed and not self.checkpoint_dir:
            what = "is empty, and a training on several GPUs or machines meets there."
            found.append(Problem("checkpoint_dir", what, "Give an object-store URI, or a path on a shared volume."))
        found += store_problems(self.checkpoint_dir, "checkpoint_dir")
        return found

    def machine_problems(self) -> list[Problem]:
        """What the machine lacks that this runs on: of GPUs only where that is no cluster."""
        if found := store_problems(self.checkpoint_dir, "checkpoint_dir", installed=True):
            return found
        if in_cluster() or not self.distributed:
            return []
        if self.num_nodes > 1:
            what = f"{self.num_nodes} machines take a cluster with Kubeflow Trainer, and this is a single machine."
            return [Problem("num_nodes", what, "Give 1, or submit the pipeline to a cluster.")]
        if (present := _gpus_here()) < self.gpus_per_node:
            what = f"{self.gpus_per_node} GPUs are asked for, and this machine has {present}."
            return [Problem("gpus_per_node", what, f"Give at most {present}, or submit the pipeline to a cluster.")]
        return []


def _gpus_here() -> int:
    try:
        import torch
    except ModuleNotFoundError:
        return 0
    return torch.cuda.device_count()


def toleration_problems(toleration: Any) -> list[Problem]:
    """Everything wrong with one toleration; see Toleration v1 core in the Kubernetes API."""
    where = "tolerations"
    if not isinstance(toleration, Mapping):
        remedy = 'Write it as {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}.'
        return [Problem(where, f"{toleration!r} is not a toleration.", remedy)]
    found = []
    if unknown := sorted(set(toleration) - _TOLERATION_FIELDS):
        known = ", ".join(sorted(_TOLERATION_FIELDS))
        found.append(Problem(where, f"unknown fields: {', '.join(unknown)}.", f"There are: {known}."))
    for name, allowed in (("operator", _OPERATORS), ("effect", _EFFECTS)):
        if toleration.get(name) and toleration[name] not in allowed:
            found.append(Problem(where, f"{name} {toleration[name]!r} is unknown.", f"Choose: {', '.join(allowed)}."))
    if toleration.get("operator", "Equal") != "Exists" and not toleration.get("key"):
        found.append(Problem(where, "there is no key to compare.", "Give a key, or the operator Exists."))
    return found
