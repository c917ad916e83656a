"""Whether the files of a release are those that its package was made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stillhouse.artifacts import PackageManifest

__all__ = ["verify_release"]


def verify_release(folder: Path, manifest: PackageManifest, version: str) -> None:
    """As `PackageManifest.verify`, for a package whose version folders were renamed.

    Raises:
        ManifestError: naming every file that is missing, altered, or not in the manifest.
    """

    def renamed(name: str) -> str:
        parts = name.split("/")  # triton/<model>/<version>/…
        if len(parts) > 3 and parts[0] == "triton" and parts[2].isdigit():
            parts[2] = version
        return "/".join(parts)

    replace(manifest, files={renamed(name): digest for name, digest in manifest.files.items()}).verify(folder)
