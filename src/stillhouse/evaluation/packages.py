"""The packages that are measured: read, checked, and found to belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.artifacts import DatasetManifest, ModelManifest, PackageManifest, PackagesManifest, sha256_file
from stillhouse.errors import InputError, ManifestError, Problem, ServingError
from stillhouse.evaluation.measure import probe
from stillhouse.evaluation.policy import REFERENCE
from stillhouse.evaluation.table import CHAMPION

__all__ = ["Candidates", "LoadedCheckpoint", "LoadedPackage", "load_champion", "load_packages", "served_rows"]


@dataclass(frozen=True)
class LoadedPackage:
    """One package, and the role that it is measured in."""

    role: str
    """`teacher`, `student`, `albert`, `champion`, or the name of an extra candidate."""
    folder: Path
    manifest: PackageManifest
    digest: str

    @property
    def key(self) -> str:
        """Name for messages and columns, such as `student int8`."""
        return f"{self.role} {self.manifest.precision}"

    def in_order(self, probabilities: NDArray[np.float32], label_names: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities [n, c] of this package's labels, with the columns in the order of `label_names`."""
        own = self.manifest.label_names
        return probabilities if own == list(label_names) else probabilities[:, [own.index(n) for n in label_names]]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A candidate that no package could be made of."""

    name: str
    reason: str
    """Why, in a sentence."""
    folder: Path
    manifest: ModelManifest

    @property
    def key(self) -> str:
        """Name for messages and columns, such as `xlnet pytorch`."""
        return f"{self.name} pytorch"


@dataclass(frozen=True)
class Candidates:
    """What is measured side by side."""

    packages: list[LoadedPackage]
    """In the order given."""
    unservable: list[LoadedCheckpoint]
    """What could not be packaged, and is measured in PyTorch for its quality alone."""
    refused: list[dict[str, str]]
    """Precisions that were refused before: `name`, `precision` and `reason`."""
    digests: dict[str, str]
    """Of each `packages` artifact, by role."""


def load_packages(folders: Sequence[Path], dataset: DatasetManifest) -> Candidates:
    """Read and check `packages` artifacts.

    Raises:
        InputError: with every package that is altered, doubled, or made for other labels than the dataset's.
    """
    found: list[LoadedPackage] = []
    unservable: list[LoadedCheckpoint] = []
    refused: list[dict[str, str]] = []
    digests: dict[str, str] = {}
    problems: list[Problem] = []
    for folder in folders:
        try:
            manifest = PackagesManifest.load(folder)
            manifest.verify(folder)
            digests[f"packages_{manifest.name}"] = PackagesManifest.digest(folder)
            refused += [
                {"name": manifest.name, "precision": precision, "reason": reason}
                for precision, reason in manifest.refused.items()
            ]
            found += [_load(manifest.name, folder / precision) for precision in manifest.precisions]
            if manifest.unservable:
                checkpoint = folder / PackagesManifest.checkpoint_folder
                model = ModelManifest.load(checkpoint)
                unservable.append(LoadedCheckpoint(manifest.name, manifest.unservable, checkpoint, model))
        except ManifestError as error:
            problems += error.problems
    seen: set[str] = set()
    candidates: list[LoadedPackage | LoadedCheckpoint] = [*found, *unservable]
    for candidate in candidates:
        if candidate.key in seen:
            problems.append(Problem("packages", f"{candidate.key} is given twice.", "Give each candidate once."))
        seen.add(candidate.key)
        if (candidate.manifest.task, candidate.manifest.label_names) != (dataset.task, dataset.label_names):
            what = f"{candidate.key} answers other labels, or another task, than the dataset holds."
            problems.append(Problem("packages", what, "Evaluate packages on the dataset they were trained for."))
    if not problems and not any((p.role, p.manifest.precision) == REFERENCE for p in found):
        what = "the FP32 teacher, which retention is measured against, is not among the candidates."
        reasons = [entry["reason"] for entry in refused if (entry["name"], entry["precision"]) == REFERENCE]
        remedy = f"It was refused: {reasons[0]}" if reasons else "Package the teacher, and keep fp32 in `precisions`."
        problems.append(Problem("packages", what, remedy))
    if problems:
        raise InputError(problems)
    return Candidates(found, unservable, refused, digests)


def load_champion(
    folder: Path, dataset: DatasetManifest, texts: Sequence[str], threads: int
) -> tuple[LoadedPackage | None, str]:
    """The champion's package, or why it cannot be measured on these texts; None and no reason where there is none.

    Args:
        folder: a `packages` artifact named `champion` with one package, or with none.
        dataset: what the candidates are measured on.
        texts: of its test split, those that are measured on.
        threads: threads of one call.

    Raises:
        ManifestError: the artifact itself is missing, altered, or of an unknown format.
    """
    outer = PackagesManifest.load(folder)
    outer.verify(folder)
    if not outer.precisions:
        return None, next(iter(outer.refused.values()), "")
    try:
        package = _load(CHAMPION, folder / outer.precisions[0])
    except ManifestError as error:
        return None, f"its format is not understood ({error.problems[0].what.rstrip('.')})."
    manifest = package.manifest
    if manifest.task != dataset.task:
        return None, f"its task is {manifest.task}, and that of the data is {dataset.task}."
    if set(manifest.label_names) != set(dataset.label_names):
        gone = sorted(set(manifest.label_names) ^ set(dataset.label_names))
        return None, f"its labels are others than those of the data ({', '.join(gone[:5])})."
    if long := _over_limit(texts, manifest.max_text_bytes):
        return (
            None,
            f"it refuses texts of more than {manifest.max_text_bytes:,} bytes, which {len(long):,} test rows are.",
        )
    try:
        probe(package.key, package.folder, texts[0], threads)
    except ServingError as error:
        return None, f"it does not run any more ({str(error).splitlines()[0].rstrip('.')})."
    return package, ""


def _over_limit(texts: Sequence[str], max_text_bytes: int) -> set[int]:
    """Indices of the texts that an endpoint with that limit refuses."""
    return {i for i, text in enumerate(texts) if len(text.encode("utf-8", "surrogatepass")) > max_text_bytes}


def served_rows(rows: Mapping[str, Sequence[Any]], packages: Sequence[LoadedPackage]) -> list[int]:
    """Indices of the test rows that every endpoint would take: the others are over the byte limit.

    Raises:
        InputError: none is left.
    """
    limit = min(package.manifest.max_text_bytes for package in packages)
    refused = _over_limit(rows["text"], limit)
    kept = [index for index in range(len(rows["text"])) if index not in refused]
    if not kept:
        what = f"no test row is left to evaluate on: {len(rows['text'])} rows, none within {limit} bytes."
        raise InputError(Problem("test_data", what, "Give test rows, or raise `max_text_bytes`."))
    return kept


def _load(role: str, folder: Path) -> LoadedPackage:
    return LoadedPackage(role, folder, PackageManifest.load(folder), sha256_file(folder / "package.json"))
