"""The TrainJob made from a step's own pod."""

from __future__ import annotations

from typing import Any

import pytest

from stillhouse.errors import InputError
from stillhouse.training.manifest import train_job
from stillhouse.training.scale import ScaleConfig

RUNTIME = {"kind": "ClusterTrainingRuntime", "name": "torch-distributed"}
PLACE = "s3://bucket/checkpoints/trainjobs/stillhouse-teacher-0123456789ab"


def made(pod: dict[str, Any], place: str = PLACE, **scale: Any) -> dict[str, Any]:
    config = ScaleConfig(**{"num_nodes": 2, "gpus_per_node": 4, **scale})
    return train_job(pod, name="stillhouse-teacher-0123456789ab", place=place, scale=config, runtime=RUNTIME)


def test_the_whole_manifest(pod: dict[str, Any]):
    off = {"sidecar.istio.io/inject": "false"}
    pod_patch = {
        "serviceAccountName": "default-editor",
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": {"fsGroup": 1000, "runAsNonRoot": True},
        "volumes": [
            {"name": "ca-bundle", "configMap": {"name": "kfp-ca"}},
            {"name": "hub-cache", "persistentVolumeClaim": {"claimName": "hub-cache"}},
            {"name": "checkpoints", "persistentVolumeClaim": {"claimName": "checkpoints"}},
            {"name": "stillhouse-shm", "emptyDir": {"medium": "Memory"}},
        ],
        "containers": [
            {
                "name": "node",
                "volumeMounts": [
                    {"name": "ca-bundle", "mountPath": "/kfp/certs/ca.crt", "subPath": "ca.crt"},
                    {"name": "hub-cache", "mountPath": "/cache"},
                    {"name": "checkpoints", "mountPath": "/checkpoints"},
                    {"name": "stillhouse-shm", "mountPath": "/dev/shm"},
                ],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }
    assert made(pod) == {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": "stillhouse-teacher-0123456789ab",
            "labels": {
                "app.kubernetes.io/managed-by": "stillhouse",
                "pipeline/runid": "3f1d8e0c-8a55-4d6b-9d2e-64f0f1a7c001",
            },
            "ownerReferences": [
                {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "reviews-x7k2p", "uid": "77aa"}
            ],
        },
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", **RUNTIME},
            "trainer": {
                "image": "registry.example.com/stillhouse-train:0.1.0",
                "command": ["python", "-m", "stillhouse.training.node", PLACE],
                "env": [
                    {"name": "HF_HOME", "value": "/cache/huggingface"},
                    {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {
                        "name": "stillhouse-hub", "key": "HF_TOKEN", "optional": True}}},
                    {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {
                        "name": "stillhouse-object-store", "key": "AWS_SECRET_ACCESS_KEY", "optional": True}}},
                    {"name": "OMP_NUM_THREADS", "value": "1"},
                ],
                "numNodes": 2,
                "numProcPerNode": 4,
                "resourcesPerNode": {
                    "requests": {"cpu": "3", "memory": "12Gi", "nvidia.com/gpu": "4"},
                    "limits": {"memory": "12Gi", "nvidia.com/gpu": "4"},
                },
            },
            "runtimePatches": [
                {
                    "manager": "stillhouse/training",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [
                        {"name": "node", "template": {"spec": {"template": {
                            "metadata": {"labels": off, "annotations": off}, "spec": pod_patch}}}}
                    ]}}},
                }
            ],
        },
    }  # fmt: skip


def test_it_is_what_the_api_knows(pod: dict[str, Any]):
    # The models drop fields that they do not know, and refuse values of another type.
    models = pytest.importorskip("kubeflow_trainer_api.models")
    for manifest in (made(pod), made(pod, gpus_per_node=0)):
        assert models.TrainerV1alpha1TrainJob.from_dict(manifest).to_dict() == manifest


def test_without_gpus_the_threads_follow_the_cpus(pod: dict[str, Any]):
    trainer = made(pod, gpus_per_node=0)["spec"]["trainer"]
    assert trainer["numProcPerNode"] == 1
    assert trainer["resourcesPerNode"] == {
        "requests": {"cpu": "3", "memory": "12Gi"},
        "limits": {"memory": "12Gi"},
    }
    assert {"name": "OMP_NUM_THREADS", "value": "3"} in trainer["env"]
    pod["spec"]["containers"][1]["env"].append({"name": "OMP_NUM_THREADS", "value": "2"})
    env = made(pod, gpus_per_node=0)["spec"]["trainer"]["env"]
    assert [one["value"] for one in env if one["name"] == "OMP_NUM_THREADS"] == ["2"]


def test_gpus_of_another_maker(pod: dict[str, Any]):
    limits = made(pod, gpu_type="amd.com/gpu")["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert limits == {"memory": "12Gi", "amd.com/gpu": "4"}


def test_a_bare_pod_leaves_the_runtime_as_it_is(pod: dict[str, Any]):
    bare = {
        "metadata": {"name": "x", "uid": "1"},
        "spec": {"containers": [{"name": "main", "image": "train:1"}]},
    }
    spec = made(bare, gpus_per_node=0)["spec"]
    assert spec["trainer"] == {
        "image": "train:1",
        "command": ["python", "-m", "stillhouse.training.node", PLACE],
        "numNodes": 2,
        "numProcPerNode": 1,
    }
    patch = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    assert patch["template"]["spec"]["template"]["spec"] == {}


@pytest.mark.parametrize("place", ["/checkpoints/trainjobs/x", "/cache/x"])
def test_a_path_on_a_common_volume_will_do(pod: dict[str, Any], place: str):
    assert made(pod, place)["spec"]["trainer"]["command"][-1] == place


@pytest.mark.parametrize("place", ["/data/x", "/tmp/x", "file:///tmp/x", "/checkpoints-too/x", "/kfp/certs/ca.crt/x"])
def test_a_path_that_pods_do_not_share_is_refused(pod: dict[str, Any], place: str):
    with pytest.raises(InputError, match="checkpoint_dir"):
        made(pod, place)
