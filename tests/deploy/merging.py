"""How the API server applies patches: JSON merge patch (RFC 7386), and Kubernetes' strategic merge patch."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["merge", "strategic_merge"]

_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "secrets": ("name",),
    "volumeMounts": ("mountPath",),
    "ports": ("containerPort", "port"),
    "topologySpreadConstraints": ("topologyKey",),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
}
"""Lists that are merged element by element, by the `patchMergeKey` of the API's types; all others are replaced."""


def merge(target: Any, patch: Any) -> Any:
    """The target with a JSON merge patch applied."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def strategic_merge(target: Any, patch: Any) -> Any:
    """The target with a strategic merge patch applied."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = {} if patch.get("$patch") == "replace" or not isinstance(target, dict) else copy.deepcopy(target)
    if "$retainKeys" in patch:
        merged = {key: value for key, value in merged.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, list) and key in _KEYS:
            order = patch.get(f"$setElementOrder/{key}", [])
            merged[key] = _merged_list(merged.get(key) or [], value, _KEYS[key], order)
        else:
            merged[key] = strategic_merge(merged.get(key), value)
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            merged[name] = [entry for entry in merged.get(name, []) if entry not in value]
        elif key.startswith("$setElementOrder/") and (name := key.partition("/")[2]) in merged and name not in patch:
            merged[name] = _merged_list(merged[name], [], _KEYS.get(name, ()), value)
    return merged


def _merged_list(target: list[Any], patch: list[Any], keys: tuple[str, ...], order: list[Any]) -> list[Any]:
    def identity(entry: Any) -> Any:
        return next((entry[key] for key in keys if key in entry), None) if isinstance(entry, dict) else entry

    found = list(target)
    for entry in patch:
        place = next((n for n, one in enumerate(found) if identity(one) == identity(entry)), None)
        if entry.get("$patch") == "delete":
            found = [one for one in found if identity(one) != identity(entry)]
        elif place is None:
            found.append({key: value for key, value in entry.items() if not key.startswith("$")})
        else:
            found[place] = strategic_merge(found[place], entry)
    wanted = [identity(entry) for entry in order]
    return sorted(found, key=lambda one: wanted.index(identity(one)) if identity(one) in wanted else len(wanted))
