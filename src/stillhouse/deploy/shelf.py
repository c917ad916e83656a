"""The releases that are kept on this machine, `<home>/serving/repository/<model>/<version>-<digest>/`.

A release's folder is never changed once it is there. The last few stay, so that going back needs no registry; so do the
texts that the last one was tested with, in `smoke.json` beside them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from stillhouse.artifacts import PackageManifest, sha256_file
from stillhouse.deploy.smoke import PLAIN_TEXTS
from stillhouse.errors import ManifestError
from stillhouse.serving.journal import read_releases
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.server import serving_folder
from stillhouse.serving.verify import verify_release

__all__ = [
    "PackageSource",
    "clear_out",
    "fetch_release",
    "keep_texts",
    "kept_texts",
    "load_for",
    "release_at_hand",
]

_KEPT = 5
"""Releases of a model that stay."""
_TEXTS = "smoke.json"


class PackageSource(Protocol):
    """Where packages of registered versions come from."""

    def fetch_package(self, name: str, version: str, destination: Path) -> Path:
        """Bring a version's package to `destination` and check it. Returns the folder with `package.json`."""


def fetch_release(registry: PackageSource, name: str, version: str, repository: Path) -> Path:
    """Fetch a version, check it, and lay it out to be served as that version.

    Args:
        registry: where it is.
        name: registered name, which the package must serve under.
        version: registered version; Triton's version folders bear it afterwards.
        repository: where releases are kept. A release's folder is never changed once it is there.

    Returns:
        The package's folder, `<repository>/<name>/<version>-<start of the manifest's sha256>`: after a registry was
        made anew, the same number may mean another package.

    Raises:
        ManifestError: a file is missing or altered, or the package serves another name.
    """
    shelf = repository / name
    shelf.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=shelf) as scratch:
        fetched = registry.fetch_package(name, version, Path(scratch) / "package")
        manifest = load_for(name, fetched, str(fetched))
        set_model_version(fetched / "triton", name, version)
        verify_release(fetched, manifest, version)
        release = shelf / f"{version}-{sha256_file(fetched / PackageManifest.filename())[:12]}"
        if release.exists():
            try:
                verify_release(release, manifest, version)
                return release
            except ManifestError:
                shutil.rmtree(release)  # altered since it was fetched
        fetched.rename(release)
    return release


def load_for(name: str, folder: Path, shown: str) -> PackageManifest:
    """The manifest of a package that is to serve a model.

    Args:
        name: registered name of the model.
        folder: where the manifest is.
        shown: what people know that place by.

    Raises:
        ManifestError: it is of an unknown format, or the package serves another name.
    """
    manifest = PackageManifest.load(folder)
    if manifest.served_name != name:
        what = f"serves under the name {manifest.served_name!r}, and is registered as {name!r}."
        raise ManifestError(shown, what, "Package it again with that model_name.")
    return manifest


def release_at_hand(folder: Path, name: str, version: str) -> Path | None:
    """The package of a version that was served here before, if it still is here as it was.

    Args:
        folder: the serving folder.
        name: of the model.
        version: registered version.
    """
    for entry in reversed(read_releases(folder, name)):
        package = Path(entry.package)
        # The name of a release's folder ends with the digest of what was registered.
        if entry.version != version or package.parent != folder / "repository" / name or not package.is_dir():
            continue
        try:
            manifest = PackageManifest.load(package)
            verify_release(package, manifest, version)
        except ManifestError:
            return None
        digest = sha256_file(package / PackageManifest.filename())
        return package if package.name == f"{version}-{digest[:12]}" else None
    return None


def keep_texts(shelf: Path, texts: Sequence[str]) -> None:
    """Keep the texts that a model's release was tested with; `shelf` is the model's folder."""
    (shelf / _TEXTS).write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")


def kept_texts(home: Path, name: str) -> list[str]:
    """The texts that a model's last deployment here was tested with; for one that comes without rows of its own."""
    try:
        found = json.loads((serving_folder(home) / "repository" / name / _TEXTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = []
    return [str(text) for text in found] or list(PLAIN_TEXTS)


def clear_out(folder: Path, name: str, *, keep: set[str]) -> None:
    """Remove the releases of a model but the last few that were served here, and those in `keep`."""
    lately = dict.fromkeys(entry.package for entry in reversed(read_releases(folder, name)))
    keep = keep | set(list(lately)[:_KEPT])
    for path in (folder / "repository" / name).iterdir():
        # What another process is fetching has a name that begins with a dot.
        if path.is_dir() and str(path) not in keep and not path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)
