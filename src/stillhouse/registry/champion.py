"""The `fetch_champion` step: what is deployed, as packages that can be measured beside the new ones."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from stillhouse.artifacts import PackageManifest, PackagesManifest
from stillhouse.errors import ManifestError, RegistryError
from stillhouse.evaluation.table import CHAMPION
from stillhouse.progress import Step
from stillhouse.registry.mlflow_registry import MlflowRegistry

__all__ = ["fetch_champion"]


def fetch_champion(
    registry: MlflowRegistry, name: str, *, version: str, digest: str, output_dir: Path, step: Step
) -> PackagesManifest:
    """Write a `packages` artifact named `champion` with the champion's package; with none where there is no champion.

    A package of a format that this release does not understand is left out, and noted as refused.

    Args:
        registry: where it is.
        name: registered name.
        version: its version; empty where there is none to compare with.
        digest: sha256 of its manifest, as it was when the run began.
        output_dir: where to write; made if it is not there.
        step: told how far the work is.

    Raises:
        RegistryError: the registry cannot be reached, or the package is gone or was altered.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    precisions, refused = [], {}
    if version:
        step.progress(0, 1, f"version {version} of {name}")
        if registry.tags(name, version).get("manifest_digest") != digest:
            raise RegistryError(f"Version {version} of {name} was registered anew since the run began. Run it again.")
        with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=".champion-") as work:
            try:
                package = registry.fetch_package(name, version, Path(work) / "package")
                precision = PackageManifest.load(package).precision
                shutil.move(package, output_dir / precision)
                precisions.append(precision)
            except ManifestError as error:
                refused["package"] = f"its format is not understood ({error.problems[0].what.rstrip('.')})."
        step.progress(1, 1, "")
    inputs = {"package": digest} if digest else {}
    manifest = PackagesManifest(
        producer="fetch_champion", inputs=inputs, name=CHAMPION, precisions=precisions, refused=refused
    )
    manifest.save(output_dir)
    return manifest
