"""What a release serves now and served before, as the command line and programs read it."""

from __future__ import annotations

from typing import Any

from stillhouse.deploy.kubernetes.access import Access
from stillhouse.deploy.kubernetes.diagnosis import api_errors, diagnosis
from stillhouse.deploy.kubernetes.helm import Helm
from stillhouse.deploy.kubernetes.release import HelmRelease

__all__ = ["find_releases", "release_rows", "release_status"]

_TIMEOUT_S = 30
_CHART = "triton-"
_QUICK_S = 60.0


def find_releases(helm: Helm, access: Access, name: str = "") -> list[HelmRelease]:
    """The releases of charts/triton in a namespace, by name; or the one of that name, which may not be there."""
    if name:
        return [HelmRelease(helm, access, name, _QUICK_S)]
    rows = helm.read("list", "--all", "--max=1000")
    return [HelmRelease(helm, access, row["name"], _QUICK_S) for row in rows if row["chart"].startswith(_CHART)]


def release_rows(release: HelmRelease, champion: str | None) -> list[dict[str, Any]]:
    """The revisions of a release, the newest first.

    Args:
        release: of one model.
        champion: version of the alias.

    Returns:
        `namespace`, `release`, `revision`, `at` (ISO 8601), `model`, `version`, `canary` (a version, or empty),
        `canary_weight` (percent), `status` (helm's), `how` (`deploy`, `canary` or `rollback`), `tested`, and
        `served` and `champion` (true in one row at most).
    """
    rows = []
    served, named = True, True
    for one in release.newest_first():
        is_served = served and one.status == "deployed"
        is_champion = named and one.serves and not one.canary and one.version == champion
        served, named = served and not is_served, named and not is_champion
        rows.append(
            {
                "namespace": release.namespace,
                "release": release.name,
                "revision": one.number,
                "at": one.at,
                "model": one.model,
                "version": one.version,
                "canary": one.canary,
                "canary_weight": one.canary_weight,
                "status": one.status,
                "how": "rollback" if one.by_rollback else "canary" if one.canary else "deploy",
                "tested": one.tested,
                "served": is_served,
                "champion": is_champion,
            }
        )
    return rows


def release_status(release: HelmRelease, champion: str | None) -> dict[str, Any]:
    """What a release serves now.

    Returns:
        `namespace`, `release`, `model`, `revision`, `status` (helm's), `at`, `stable` and `canary` (`version`, `ready`
        and `wanted` pods; `canary` None where there is none), `canary_weight`, `tested`, `tested_at`, `champion`,
        `answers` (all pods that stable wants are ready, and the last test passed), and `trouble`: lines about pods that
        are not ready.

    Raises:
        ServingError: the cluster cannot be asked.
    """
    last = release.last()
    if last is None:
        return {"namespace": release.namespace, "release": release.name, "status": "absent", "answers": False}
    tracks = _tracks(release)
    stable = tracks.get("stable") or {"version": last.version, "ready": 0, "wanted": 0}
    well = all(0 < track["wanted"] <= track["ready"] for track in (stable, *tracks.values()))
    return {
        "namespace": release.namespace,
        "release": release.name,
        "model": last.model,
        "revision": last.number,
        "status": last.status,
        "at": last.at,
        "stable": stable,
        "canary": tracks.get("canary"),
        "canary_weight": last.canary_weight,
        "tested": last.tested,
        "tested_at": last.tested_at,
        "champion": champion or "",
        "answers": well and last.status == "deployed" and last.tested in ("Succeeded", ""),
        "trouble": [] if well else diagnosis(release.access, release.name),
    }


def _tracks(release: HelmRelease) -> dict[str, dict[str, Any]]:
    """Version and pods of each track that has a Deployment."""
    from kubernetes.client import AppsV1Api

    with api_errors(f"read the deployments of {release.name}"):
        found = AppsV1Api(release.access.client()).list_namespaced_deployment(
            release.namespace, label_selector=f"app.kubernetes.io/instance={release.name}", _request_timeout=_TIMEOUT_S
        )
    tracks = {}
    for deployment in found.items:
        labels = deployment.metadata.labels or {}
        tracks[labels.get("stillhouse.dev/track", "stable")] = {
            "version": labels.get("stillhouse.dev/model-version", ""),
            "ready": deployment.status.ready_replicas or 0,
            "wanted": deployment.spec.replicas or 0,
        }
    return tracks
