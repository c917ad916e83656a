"""Bring one pinned package to an empty folder, ready for Triton: what a pod's init container does.

A registry or a store may be written to by others, so nothing that comes from there is trusted before it is checked:
first `package.json` against the sha256 that the release pins, then every file against `package.json`.

Everything is written to `<folder>/.fetching/` first. What is whole is renamed into place, `package.json` last, so a
folder with a `package.json` holds a release, and one that was left by a killed attempt is cleared and begun again. One
process at a time may do this to a folder.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stillhouse.artifacts import PackageManifest, sha256_file
from stillhouse.deploy.config import version_problems
from stillhouse.deploy.package_store import PackageStore, open_store, source_problems
from stillhouse.deploy.shelf import load_for
from stillhouse.errors import InputError, ManifestError, Problem
from stillhouse.serving.repository import name_problems, set_model_version
from stillhouse.serving.verify import verify_release

__all__ = ["FetchConfig", "fetch_pinned"]

_STAGING = ".fetching"
_REPOSITORY = "triton"
_MANIFEST = PackageManifest.filename()
_LARGEST_MANIFEST = 16 << 20  # bytes; it is read whole before it is checked
_NOT_OURS = "lost+found"
"""Stands in the root of some volumes."""


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Which package, from where, and what it must be."""

    source: str
    """`models:/NAME/VERSION`, the URL of a package's folder in an object store, or a path."""
    folder: Path
    """Where to: empty, not there yet, or what an earlier attempt left."""
    model: str
    """Registered and served name."""
    version: str
    """Registered version; Triton's version folders bear it afterwards."""
    manifest_sha256: str
    """sha256 of the package's `package.json`, in hex."""
    tracking_uri: str = ""
    """MLflow; empty takes what `MLFLOW_TRACKING_URI` says."""

    def problems(self) -> list[Problem]:
        """Everything wrong with the values."""
        found = [Problem("--model", problem.what, problem.remedy) for problem in name_problems(self.model)]
        version = version_problems("--version", self.version or "''")
        if not re.fullmatch(r"[0-9a-f]{64}", self.manifest_sha256):
            remedy = "Give 64 hexadecimal digits: the tag stillhouse.manifest_digest of the version."
            found.append(Problem("--manifest-sha256", f"{self.manifest_sha256!r} is no sha256.", remedy))
        return [*found, *version, *source_problems(self.source, self.model, self.version)]


def fetch_pinned(config: FetchConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Fetch a package, check it, and lay it out to be served as its version: all of it, or nothing.

    Args:
        config: which, from where, to where.
        say: is told in a line what happens.

    Returns:
        The model repository, `<folder>/triton`.

    Raises:
        InputError: a value will not do; the manifest is not the pinned one, or of a format that is not understood, or
            serves another name; or files are missing, altered, or not in the manifest (each is named). Also where the
            folder holds something else.
        RegistryError: the source could not be reached.
    """
    if problems := config.problems():
        raise InputError(problems)
    folder, staging = config.folder, config.folder / _STAGING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_there(config, say):
            shutil.rmtree(staging, ignore_errors=True)
            return folder / _REPOSITORY
        _make_room(folder)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            _fetch(config, staging, say)
            (staging / _REPOSITORY).rename(folder / _REPOSITORY)
            (staging / _MANIFEST).rename(folder / _MANIFEST)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})."
        raise InputError(Problem(str(folder), what, "Give a folder that this user may write, with space.")) from None
    say(f"ready: {folder / _REPOSITORY} holds {config.model} version {config.version}")
    return folder / _REPOSITORY


def _is_there(config: FetchConfig, say: Callable[[str], None]) -> bool:
    """Whether an earlier attempt fetched this very release. What it fetched and was altered since is removed."""
    folder = config.folder
    if not (folder / _MANIFEST).is_file():
        return False
    if (found := sha256_file(folder / _MANIFEST)) != config.manifest_sha256:
        what = f"holds another package already (its {_MANIFEST} has sha256 {found})."
        raise InputError(Problem(str(folder), what, "Give an empty folder."))
    shutil.rmtree(folder / _STAGING, ignore_errors=True)
    try:
        verify_release(folder, load_for(config.model, folder, str(folder)), config.version)
    except ManifestError as error:
        say(f"{folder} does not hold what was fetched any more, so it is fetched again: {error}")
        (folder / _STAGING).mkdir()  # says whose the rest is, should this end here
        (folder / _MANIFEST).unlink()
        return False
    say(f"{folder} holds {config.model} version {config.version} already, whole")
    return True


def _make_room(folder: Path) -> None:
    """Remove what an attempt left that was killed; refuse to touch anything else."""
    present = {path.name for path in folder.iterdir()} - {_NOT_OURS}
    ours = {_STAGING, _REPOSITORY} if _STAGING in present else set()
    if strange := sorted(present - ours):
        what = f"is not empty: it holds {', '.join(strange[:5])}{' and more' if len(strange) > 5 else ''}."
        raise InputError(Problem(str(folder), what, "Give an empty folder."))
    shutil.rmtree(folder / _REPOSITORY, ignore_errors=True)


def _fetch(config: FetchConfig, staging: Path, say: Callable[[str], None]) -> None:
    begin = time.monotonic()
    say(f"fetching {config.model} version {config.version} from {config.source}")
    with open_store(config.source, config.tracking_uri) as store:
        sizes = store.sizes()
        manifest = _pinned_manifest(config, store, sizes, staging)
        total = sum(sizes.get(name, 0) for name in manifest.files)
        say(f"{_MANIFEST} is the pinned one; it names {len(manifest.files)} files, {total / 1e6:.1f} MB")
        if faults := _copy(config.source, store, sizes, manifest, staging, say):
            raise InputError(faults)
    set_model_version(staging / _REPOSITORY, config.model, config.version)
    seconds = time.monotonic() - begin
    say(f"{len(manifest.files)} files are as the manifest says, {total / 1e6:.1f} MB in {seconds:.1f} s")


def _pinned_manifest(config: FetchConfig, store: PackageStore, sizes: dict[str, int], staging: Path) -> PackageManifest:
    where = f"{config.source.rstrip('/')}/{_MANIFEST}"
    if _MANIFEST not in sizes:
        found = ", ".join(sorted(sizes)[:5])
        what = f"is missing; there is {found}." if found else "is missing, as is anything else."
        raise ManifestError(where, what, "Name the folder of one package, in one precision.")
    if sizes[_MANIFEST] > _LARGEST_MANIFEST:
        raise ManifestError(where, f"has {sizes[_MANIFEST]} bytes, which no manifest has.", "Do not serve it.")
    store.download(_MANIFEST, staging / _MANIFEST)
    if (found := sha256_file(staging / _MANIFEST)) != config.manifest_sha256:
        what = f"has sha256 {found}, and {config.manifest_sha256} is pinned."
        raise ManifestError(where, what, "It is another package than was released, or was altered: do not serve it.")
    (staging / _MANIFEST).chmod(0o644)
    try:
        manifest = load_for(config.model, staging, config.source)
    except ManifestError as error:  # whose place is the one that is removed soon
        (problem,) = error.problems
        raise ManifestError(where, problem.what, problem.remedy) from None
    # Written by us, as its digest says; but a mistake must not write outside the folder either.
    if outside := [name for name in manifest.files if not _is_inside(name)]:
        raise ManifestError(where, f"names files outside {_REPOSITORY}/: {', '.join(outside[:5])}.")
    return manifest


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return len(path.parts) > 1 and path.parts[0] == _REPOSITORY and ".." not in path.parts and str(path) == name


def _copy(
    source: str, store: PackageStore, sizes: dict[str, int], manifest: PackageManifest, staging: Path,
    say: Callable[[str], None],
) -> list[Problem]:  # fmt: skip
    """Copy every file of the manifest that is there; returns all that is wrong."""
    remedy = "Restore it from where it was registered, or release another version."
    faults = []

    def add(name: str, what: str) -> None:
        faults.append(Problem(f"{source.rstrip('/')}/{name}", what, remedy))

    for name, expected in manifest.files.items():
        if name not in sizes:
            add(name, "is missing.")
            continue
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        store.download(name, target)
        target.chmod(0o644)  # who serves may be another user than who fetches
        if (found := sha256_file(target)) != expected:
            add(name, f"was altered: it has sha256 {found}, and the manifest says {expected}.")
        say(f"  {name}, {target.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begin:.1f} s")
    for name in sorted(set(sizes) - set(manifest.files) - {_MANIFEST}):
        add(name, "is not in the manifest.")
    return faults
