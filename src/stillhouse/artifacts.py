"""The typed artifacts that flow between steps: a folder each, with a small JSON manifest.

    dataset      dataset.json      Parquet per split
    corpus       corpus.json       tokens of whole documents as Parquet, and their tokenizer
    model        model.json        Hugging Face checkpoint: config, model.safetensors, tokenizer
    packages     packages.json     one package per precision of one model
    package      package.json      a complete Triton model repository under `triton/`
    evaluation   evaluation.json   candidates, policy, choice; beside it `report.html`

A manifest names its producer, the digests of that producer's inputs, the version of Stillhouse, and the sha256 of
every file beside it. A reader refuses, by name, a manifest whose format it does not know.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from stillhouse import __version__
from stillhouse.errors import ManifestError

__all__ = [
    "CorpusManifest",
    "CorpusSplit",
    "DatasetManifest",
    "EvaluationManifest",
    "Manifest",
    "ModelManifest",
    "PackageManifest",
    "PackagesManifest",
    "SplitInfo",
    "digest_json",
    "sha256_file",
]

M = TypeVar("M", bound="Manifest")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What every artifact says of itself. Subclasses add what their kind holds."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    producer: str
    """The step that wrote the artifact, for example `distill`."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Manifest digest (sha256) of each artifact that the producer read, by role."""
    stillhouse_version: str = __version__
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of every file of the artifact, by path relative to the manifest, filled in by `save`."""

    @classmethod
    def filename(cls) -> str:
        """The manifest's name inside the artifact's folder."""
        return f"{cls.kind}.json"

    def save(self, folder: str | os.PathLike[str]) -> str:
        """Hash every file under `folder`, write the manifest there, and return the manifest's own sha256.

        The manifest is written last and in one rename, so a folder with a manifest is whole.
        """
        root = Path(folder)
        files = {
            path.relative_to(root).as_posix(): sha256_file(path)
            for path in sorted(root.rglob("*"))
            if path.is_file() and path != root / self.filename()
        }
        body = {"format": f"stillhouse/{self.kind}/v{self.version}"}
        body |= dataclasses.asdict(dataclasses.replace(self, files=files))
        target = root / self.filename()
        partial = root / f".{self.filename()}.partial"
        partial.write_text(json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, target)
        return sha256_file(target)

    @classmethod
    def load(cls: type[M], folder: str | os.PathLike[str]) -> M:
        """Read the manifest in `folder`.

        Raises:
            ManifestError: it is missing, not JSON, or of a kind or version that this release does not understand.
        """
        path = Path(folder) / cls.filename()
        expected = f"stillhouse/{cls.kind}/v{cls.version}"
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ManifestError(str(path), "there is no such manifest.", f"Is this a {cls.kind} artifact?") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(str(path), f"is not valid JSON ({error}).", "Produce the artifact again.") from None
        found = body.pop("format", None) if isinstance(body, dict) else None
        if found != expected:
            raise ManifestError(
                str(path),
                f"has format {found!r}; this release (stillhouse {__version__}) reads {expected!r}.",
                "Produce the artifact again with this release.",
            )
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(body) - known):
            raise ManifestError(str(path), f"has fields this release does not know: {', '.join(unknown)}.")
        try:
            return cls(**body)
        except TypeError as error:
            raise ManifestError(str(path), f"lacks fields ({error}).", "Produce the artifact again.") from None

    @classmethod
    def digest(cls, folder: str | os.PathLike[str]) -> str:
        """sha256 of the manifest file in `folder`: the identity of the whole artifact."""
        cls.load(folder)
        return sha256_file(Path(folder) / cls.filename())

    def verify(self, folder: str | os.PathLike[str]) -> None:
        """Check that every file is there with the recorded sha256, and that no other file is.

        Raises:
            ManifestError: naming every file that is missing, altered, or not in the manifest.
        """
        root = Path(folder)
        faults = []
        for name, expected in self.files.items():
            path = root / name
            if not path.is_file():
                faults.append(f"{name} is missing")
            elif sha256_file(path) != expected:
                faults.append(f"{name} was altered")
        present = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
        faults += [f"{name} is not in the manifest" for name in sorted(present - set(self.files) - {self.filename()})]
        if faults:
            raise ManifestError(str(root / self.filename()), "; ".join(faults) + ".", "Fetch the artifact again.")


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split of a dataset."""

    rows: int
    class_counts: dict[str, int]
    """Rows per label name; empty where the task has no classes."""
    length_quantiles: dict[str, float]
    """Text length in characters at quantiles `0.5`, `0.9`, `0.95`, `0.99` and `1.0`."""


@dataclass(frozen=True, kw_only=True)
class DatasetManifest(Manifest):
    """`dataset.json`. The folder holds `train.parquet`, `validation.parquet` and `test.parquet`."""

    kind: ClassVar[str] = "dataset"

    task: str
    columns: dict[str, str]
    """The source's column name for each of the task's columns."""
    label_names: list[str]
    """Name of each label id, in id order; empty where the task has no classes."""
    splits: dict[str, SplitInfo]
    source: dict[str, str]
    """What was read: `data`, `validation_data`, `test_data`."""
    fingerprint: str
    """Fingerprint of the source's content at the time of reading."""
    seed: int
    duplicates_removed: int
    """Rows removed from train since the same text stands in validation or test (or twice in the one split source)."""

    def __post_init__(self) -> None:
        splits = {k: v if isinstance(v, SplitInfo) else SplitInfo(**v) for k, v in self.splits.items()}
        object.__setattr__(self, "splits", splits)


@dataclass(frozen=True, kw_only=True)
class CorpusSplit:
    """One part of a corpus."""

    documents: int
    sentences: int
    tokens: int
    """Without special ones."""
    shards: int
    """Parquet files."""


@dataclass(frozen=True, kw_only=True)
class CorpusManifest(Manifest):
    """`corpus.json`. The folder holds `tokenizer/`, `train/*.parquet` and `validation/*.parquet`."""

    kind: ClassVar[str] = "corpus"

    corpus: str
    """What was read."""
    text_column: str
    tokenizer: str
    """As it was asked for: trained on the corpus, or a reference."""
    vocab_size: int
    splits: dict[str, CorpusSplit]
    """`train` and `validation`, the documents held out."""
    fingerprint: str
    """Digest of the source's content; empty where it was not read to its end."""
    validation_fraction: float
    seed: int

    def __post_init__(self) -> None:
        splits = {k: v if isinstance(v, CorpusSplit) else CorpusSplit(**v) for k, v in self.splits.items()}
        object.__setattr__(self, "splits", splits)


@dataclass(frozen=True, kw_only=True)
class ModelManifest(Manifest):
    """`model.json`. The folder is a Hugging Face checkpoint with a fast tokenizer, weights in safetensors."""

    kind: ClassVar[str] = "model"

    name: str
    """The candidate's role: `teacher`, `student` or `albert`; or an extra candidate's own name."""
    task: str
    recipe: str
    """How it came to be: `fine-tuned`, `from scratch`, `distilled`, or `factorised from the teacher`."""
    family: str
    """`model_type` of the checkpoint's config: `bert`, `distilbert`, `albert`, …"""
    label_names: list[str]
    parameters: int
    max_length: int
    """Tokens after which a text is cut."""
    hyperparameters: dict[str, Any]
    metrics: dict[str, float]
    """On the validation split."""


@dataclass(frozen=True, kw_only=True)
class PackageManifest(Manifest):
    """`package.json`. `triton/` is a complete Triton model repository for one precision of one model."""

    kind: ClassVar[str] = "package"

    name: str
    """The candidate's role: `teacher`, `student` or `albert`; or an extra candidate's own name."""
    served_name: str
    """Name of the public Triton model, which is also the name of the registered model."""
    task: str
    family: str
    precision: str
    """`fp32`, `fp16`, `int8` or `int8-static`."""
    label_names: list[str]
    parameters: int
    max_length: int
    """Tokens after which a text is cut."""
    max_text_bytes: int
    """Longer texts are refused before tokenising."""
    max_batch_size: int
    parity: dict[str, float]
    """Against PyTorch FP32 on real rows: `rows`, `max_difference`, `mean_difference`, `agreement`, `tolerance`."""
    bytes: int
    """Size of the ONNX encoder on disk."""


@dataclass(frozen=True, kw_only=True)
class PackagesManifest(Manifest):
    """`packages.json`. One subfolder per precision, each a package; or none, and the checkpoint under `pytorch/`."""

    kind: ClassVar[str] = "packages"
    checkpoint_folder: ClassVar[str] = "pytorch"
    """Subfolder with the model artifact of an extra candidate that cannot be packaged, for its evaluation."""

    name: str
    precisions: list[str]
    refused: dict[str, str]
    """Precisions that were built and refused, with the reason."""
    unservable: str = ""
    """Why there is no package at all, in a sentence; empty where there is one."""


@dataclass(frozen=True, kw_only=True)
class EvaluationManifest(Manifest):
    """`evaluation.json`. The folder also holds `report.html`."""

    kind: ClassVar[str] = "evaluation"

    task: str
    metric: str
    """The quality metric that retention and the policies are computed from."""
    policy: str
    min_retention: float
    test_rows: int
    baselines: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    choice: dict[str, Any]
    """`name`, `precision`, `reason`, and `deployable` with the reason when it is not."""
    machine: dict[str, Any]
    unservable: list[dict[str, Any]] = field(default_factory=list)
    """Candidates that cannot be packaged, with the `reason`, and their quality in PyTorch; never chosen."""


def by_role(**folders: tuple[type[Manifest], str | os.PathLike[str]] | None) -> Mapping[str, str]:
    """Digests for `Manifest.inputs`: `by_role(dataset=(DatasetManifest, path), teacher=None)`."""
    return {role: pair[0].digest(pair[1]) for role, pair in folders.items() if pair is not None}
