"""The TrainJob of a training, made from the pod of the step that starts it.

What a cluster adds to a step (image, secrets, volumes, node selector, tolerations, rights) the pods of its TrainJob
need as well. The step's own pod has all of it, resolved, and from whatever source: the compiled pipeline, the run's
parameters, admission webhooks. What Argo and Kubeflow Pipelines put there for their own ends is left out.

Environment goes into `spec.trainer.env`, since Kubeflow Trainer refuses it in a patch of the trainer's container; all
else that is not of the trainer goes into a runtime patch. Secrets stay references.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from stillhouse.errors import InputError, Problem
from stillhouse.training.scale import ScaleConfig, local_path

__all__ = ["MANAGER", "NODE", "RUN_LABEL", "step_container", "train_job"]

MANAGER = "stillhouse/training"
"""Owner of the runtime patch, as `domain/path`."""
NODE = "node"
"""Name of the job, and of its container, that trains in the torch runtimes."""
RUN_LABEL = "pipeline/runid"
"""Label by which Kubeflow Pipelines marks a run's pods, put on the TrainJob as well."""
_MAIN = "main"
_FOREIGN_ENVIRONMENT = re.compile(r"(ARGO|KFP|METADATA|ML_PIPELINE|PET)_|STILLHOUSE_EVENTS$")
_FOREIGN_VOLUME = re.compile(
    r"var-run-argo|tmp-dir-argo|argo-.*|input-artifacts|kfp-launcher|artifact-local-root"
    r"|(gcs|s3|minio|dot-local|dot-cache|dot-config)-scratch"
)
_PRIVATE_VOLUME = ("emptyDir", "ephemeral", "configMap", "secret", "downwardAPI")
"""Kinds of volume in which pods do not meet."""
_NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""A mesh's proxy would outlive the training, and stand between the processes."""


def train_job(
    pod: Mapping[str, Any], *, name: str, place: str, scale: ScaleConfig, runtime: Mapping[str, str]
) -> dict[str, Any]:
    """The TrainJob, as JSON values of `trainer.kubeflow.org/v1alpha1`.

    Args:
        pod: the step's own pod, as the Kubernetes API gives it.
        name: of the TrainJob.
        place: where step and workers meet; a path must be on a volume of the pod.
        scale: machines and GPUs.
        runtime: reference to the training runtime, `kind` and `name`.

    Raises:
        InputError: the place is a path that the workers would not share.
    """
    spec, container = pod["spec"], step_container(pod)
    volumes, mounts = _volumes(spec, container)
    if (path := local_path(place)) and not _is_shared(path.as_posix(), volumes, mounts):
        what = f"{place!r} is on no volume of the step, and the machines that train meet there."
        raise InputError(Problem("checkpoint_dir", what, "Name a folder on a mounted volume, or an object-store URI."))
    resources = _resources(container, scale)
    if scale.gpus_per_node > 1:
        # Processes of one machine exchange gradients through shared memory, of which a container has 64 MiB.
        volumes.append({"name": "stillhouse-shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "stillhouse-shm", "mountPath": "/dev/shm"})
    node = _filled({"volumeMounts": mounts, "securityContext": container.get("securityContext")})
    pod_patch = _filled({
        "serviceAccountName": spec.get("serviceAccountName"),
        "imagePullSecrets": spec.get("imagePullSecrets"),
        "nodeSelector": spec.get("nodeSelector"),
        "affinity": spec.get("affinity"),
        "tolerations": [one for one in spec.get("tolerations", ()) if not _is_default(one)],
        "securityContext": spec.get("securityContext"),
        "volumes": volumes,
        "containers": [{"name": NODE, **node}] if node else [],
    })  # fmt: skip
    template = {"metadata": {"labels": _NO_SIDECAR, "annotations": _NO_SIDECAR}, "spec": pod_patch}
    replicated = [{"name": NODE, "template": {"spec": {"template": template}}}]
    labels = _filled({RUN_LABEL: pod["metadata"].get("labels", {}).get(RUN_LABEL)})
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _filled({
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "stillhouse", **labels},
            "ownerReferences": _owners(pod),
        }),
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", **runtime},
            "trainer": _filled({
                "image": container["image"],
                "command": ["python", "-m", "stillhouse.training.node", place],
                "env": _environment(container, resources, scale),
                "numNodes": scale.num_nodes,
                "numProcPerNode": scale.processes,
                "resourcesPerNode": resources,
            }),
            "runtimePatches": [
                {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": replicated}}}}
            ],
        },
    }  # fmt: skip


def step_container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The container of a pod in which the step itself runs, among any sidecars."""
    containers: Sequence[Mapping[str, Any]] = pod["spec"]["containers"]
    return next((one for one in containers if one["name"] == _MAIN), containers[0])


def _environment(
    container: Mapping[str, Any], resources: Mapping[str, Any], scale: ScaleConfig
) -> list[Mapping[str, Any]]:
    # What refers to the step's own pod says nothing of another.
    kept = [
        one
        for one in container.get("env", ())
        if not _FOREIGN_ENVIRONMENT.match(one["name"])
        and not {"fieldRef", "resourceFieldRef"} & set(one.get("valueFrom") or ())
    ]
    cpus = resources.get("limits", {}).get("cpu") or resources.get("requests", {}).get("cpu")
    if cpus and not any(one["name"] == "OMP_NUM_THREADS" for one in kept):
        # Torch would start a thread for each core of the node, few of which the pod may use.
        threads = max(1, math.floor(_cores(cpus) / scale.processes))
        kept.append({"name": "OMP_NUM_THREADS", "value": str(threads)})
    return kept


def _cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def _resources(container: Mapping[str, Any], scale: ScaleConfig) -> dict[str, Any]:
    """The step's CPU and memory for each machine, as requested and as limited, and the GPUs."""
    found: dict[str, dict[str, str]] = {}
    for kind in ("requests", "limits"):
        given = container.get("resources", {}).get(kind) or {}
        found[kind] = {key: given[key] for key in ("cpu", "memory", "ephemeral-storage") if key in given}
        if scale.gpus_per_node:
            found[kind][scale.gpu_type] = str(scale.gpus_per_node)
    return _filled(found)


def _volumes(
    spec: Mapping[str, Any], container: Mapping[str, Any]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The step's volumes and mounts; a projected one is a token, which each pod is given anew."""
    kept = [
        one for one in spec.get("volumes", ()) if not _FOREIGN_VOLUME.fullmatch(one["name"]) and "projected" not in one
    ]
    names = {one["name"] for one in kept}
    mounts = [one for one in container.get("volumeMounts", ()) if one["name"] in names]
    mounted = {one["name"] for one in mounts}
    return [one for one in kept if one["name"] in mounted], mounts


def _is_shared(place: str, volumes: Sequence[Mapping[str, Any]], mounts: Sequence[Mapping[str, Any]]) -> bool:
    private = {one["name"] for one in volumes if any(kind in one for kind in _PRIVATE_VOLUME)}
    path = PurePosixPath(place)
    return any(
        path.is_relative_to(one["mountPath"]) and one["name"] not in private and not one.get("readOnly")
        for one in mounts
    )


def _owners(pod: Mapping[str, Any]) -> list[dict[str, str]]:
    """The run's workflow, with which the TrainJob is deleted; not the pod, whose retry goes on watching the job."""
    return [
        {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
        for owner in pod["metadata"].get("ownerReferences", ())
    ]


def _is_default(toleration: Mapping[str, Any]) -> bool:
    # Every pod is given these two.
    return str(toleration.get("key", "")).startswith("node.kubernetes.io/") and "tolerationSeconds" in toleration


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}
