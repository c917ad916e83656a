"""From a registered version to the Helm values of a release: what is pinned, where it is, and what it must answer."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.artifacts import PackageManifest, sha256_file
from stillhouse.deploy.kubernetes.settings import KubernetesSettings
from stillhouse.deploy.shelf import PackageSource
from stillhouse.deploy.smoke import PLAIN_TEXTS, KnownAnswer, known_answers
from stillhouse.errors import InputError, ManifestError, Problem
from stillhouse.redaction import holds_credentials
from stillhouse.registry.tracking import resolve_uri
from stillhouse.serving.repository import encoder_name

__all__ = ["Pinned", "canary_values", "pin", "release_values", "same_release"]

_ROWS = 16
_BYTES = 64 * 1024
"""Of the known answers as JSON: they stand in a ConfigMap and in helm's own record, of 1 MiB each at most."""


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """One registered version, as a release pins it."""

    version: str
    digest: str
    """sha256 of `package.json`."""
    device: str
    """`cpu` or `gpu`: what the package's encoder is made for."""
    answers: tuple[KnownAnswer, ...]
    """The package's own."""
    asked: tuple[Mapping[str, Any], ...]
    """The same as `helm test` asks: `text`, `label`, and `probabilities` where another machine computes the same."""


def pin(registry: PackageSource, name: str, version: str, rows: Sequence[str | Mapping[str, Any]]) -> Pinned:
    """Fetch a version, check it, and ask it what a release of it must answer.

    Args:
        registry: where it is.
        name: registered name, which the package must serve under.
        version: registered version.
        rows: texts; or mappings with `text` and, where it is known from the evaluation, `label`.

    Raises:
        ManifestError: a file is missing or altered, or the package serves another name.
        ServingError: the package does not give the labels that it gave when it was evaluated.
    """
    with tempfile.TemporaryDirectory(prefix="stillhouse-deploy-") as scratch:
        package = registry.fetch_package(name, version, Path(scratch) / "package")
        manifest = PackageManifest.load(package)
        if manifest.served_name != name:
            what = f"serves under the name {manifest.served_name!r}, and is registered as {name!r}."
            raise ManifestError(str(package), what, "Package it again with that model_name.")
        settings = (package / "triton" / encoder_name(name) / "config.pbtxt").read_text(encoding="utf-8")
        device = "gpu" if "KIND_GPU" in settings else "cpu"
        answers = tuple(known_answers(package, _limited(rows)))
        # INT8 and 16-bit kernels differ from one processor to the next by more than the smoke test's tolerance.
        exact = manifest.precision == "fp32" and device == "cpu"
        digest = sha256_file(package / PackageManifest.filename())
    asked = tuple(
        {"text": one.text, "label": one.label, **({"probabilities": list(one.probabilities)} if exact else {})}
        for one in answers
    )
    return Pinned(version=version, digest=digest, device=device, answers=answers, asked=asked)


def _limited(rows: Sequence[str | Mapping[str, Any]]) -> list[str | Mapping[str, Any]]:
    """As many of the rows as have room, in their order; plain texts where each is too long."""
    found: list[str | Mapping[str, Any]] = []
    room = _BYTES
    for row in rows:
        text = row if isinstance(row, str) else str(row["text"])
        size = len(json.dumps(text))
        if len(found) < _ROWS and size <= room:
            found.append(row)
            room -= size
    return found or list(PLAIN_TEXTS if rows else ())


def release_values(settings: KubernetesSettings, pinned: Pinned) -> dict[str, Any]:
    """The values of a release that serves one version to everybody.

    Raises:
        InputError: the package does not fit the user's values.
    """
    values: dict[str, Any] = copy.deepcopy(dict(settings.values))
    values["model"] = {"name": settings.model_name, "version": pinned.version, "manifestSha256": pinned.digest}
    if pinned.device == "gpu" and values.setdefault("device", "gpu") != "gpu":
        what = f"{values['device']!r} cannot serve version {pinned.version}, which was packaged for a GPU."
        raise InputError(Problem("serving_values.device", what, "Package it with serving_device=cpu, or give gpu."))
    mlflow = dict(values.get("mlflow") or {})
    mlflow.setdefault("trackingUri", _tracking_uri(settings))
    values["mlflow"] = mlflow
    asked = [dict(row) for row in pinned.asked]
    values["smokeTest"] = {**(values.get("smokeTest") or {}), "enabled": True, "answers": asked}
    return values


def canary_values(stable: Mapping[str, Any], settings: KubernetesSettings, pinned: Pinned) -> dict[str, Any]:
    """The values of the release as it is, with a version as its canary.

    Args:
        stable: the values that the release was given last: other changes come with the promotion, so that stable's
            pods stay as they are.
        settings: of the deployment.
        pinned: the canary.
    """
    values: dict[str, Any] = copy.deepcopy(dict(stable))
    wanted = settings.values.get("canary") or {}
    model = {"version": pinned.version, "manifestSha256": pinned.digest}
    values["canary"] = {**wanted, "enabled": True, "weight": settings.canary_weight, "model": model}
    asked = [dict(row) for row in pinned.asked]
    values["smokeTest"] = {**(values.get("smokeTest") or {}), "enabled": True, "canaryAnswers": asked}
    return values


def same_release(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two releases' values differ in nothing but the rows that they are tested with."""

    def without_rows(values: Mapping[str, Any]) -> dict[str, Any]:
        test = values.get("smokeTest") or {}
        kept = {key: value for key, value in test.items() if key not in ("answers", "canaryAnswers")}
        return {**values, "smokeTest": kept}

    return without_rows(one) == without_rows(other)


def _tracking_uri(settings: KubernetesSettings) -> str:
    """Where pods find MLflow. An address with a password is left to the secret `mlflow.existingSecret`."""
    uri = resolve_uri(settings.tracking_uri)
    if problems := settings.address_problems(uri):
        raise InputError(problems)
    return "" if holds_credentials(uri) else uri
