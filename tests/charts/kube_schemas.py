"""Manifests against the schemas of Kubernetes itself, which the package kubernetes-validate carries."""

from __future__ import annotations

from typing import Any

import kubernetes_validate as kv

OLDEST = "1.29"
NEWEST = ".".join(kv.latest_version().split(".")[:2])
BUILTIN = ("v1", "apps/", "batch/", "policy/", "autoscaling/", "networking.k8s.io/", "rbac.authorization.k8s.io/")


def is_builtin(manifest: dict[str, Any]) -> bool:
    """Whether Kubernetes itself knows the kind; others are custom resources."""
    return str(manifest["apiVersion"]).startswith(BUILTIN)


def kubernetes_faults(manifest: dict[str, Any], version: str) -> str:
    """What the strict schema of a Kubernetes version does not allow; empty if all is well."""
    try:
        kv.validate(manifest, version, strict=True)
    except kv.ValidationError as error:
        return f"{manifest['kind']}/{manifest['metadata']['name']}: {'.'.join(map(str, error.path))}: {error.message}"
    return ""
