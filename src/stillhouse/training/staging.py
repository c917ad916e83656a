"""The place where a step and the machines that train for it meet, and what they leave for one another there.

<place>/work.json      what is to be done
<place>/dataset/       the inputs, each with its manifest
<place>/teacher/
<place>/corpus/
<place>/progress.json  how far the training is
<place>/failure.json   what went wrong, if it was foreseen
<place>/model/         the model artifact, its manifest written last
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import CorpusManifest, DatasetManifest, Manifest, ModelManifest
from stillhouse.errors import InputError, ManifestError, Problem, StillhouseError, TrainingError
from stillhouse.progress import Step
from stillhouse.training.config import DistillConfig, FinetuneConfig

if TYPE_CHECKING:
    from stillhouse.pretraining import PretrainConfig

__all__ = ["MANIFESTS", "Place", "Work", "reporting"]

MANIFESTS: dict[str, type[Manifest]] = {
    "dataset": DatasetManifest,
    "teacher": ModelManifest,
    "corpus": CorpusManifest,
    "model": ModelManifest,
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One training step, as those who do it read it."""

    config: FinetuneConfig | DistillConfig | PretrainConfig
    step: str
    """The step's name in events."""
    nodes: int
    """Machines."""
    processes: int
    """Processes of each machine: one for each GPU, or one."""
    inputs: Mapping[str, str]
    """Manifest digest of each input, by role: `dataset`, and `teacher` where one is needed; or `corpus`."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        kind = next(name for name, of in _kinds().items() if type(self.config) is of)
        return {**dataclasses.asdict(self), "kind": kind}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Work:
        """From JSON values that `to_json` gave."""
        body = dict(body)
        kind = _kinds()[body.pop("kind")]
        settings = dict(body.pop("config"))
        for field in dataclasses.fields(kind):
            nested = type(field.default)
            if dataclasses.is_dataclass(nested) and field.name in settings:
                settings[field.name] = nested(**settings[field.name])
        return cls(config=kind(**settings), **body)

    def do(self, folder: Path, *, output_dir: Path, step: Step | None) -> ModelManifest:
        """Do it, in each of the processes that train together.

        Args:
            folder: holds the inputs, by role.
            output_dir: where the main process writes the model.
            step: told of the progress.
        """
        if "corpus" in self.inputs:
            from stillhouse.pretraining import PretrainConfig, pretrain

            assert isinstance(self.config, PretrainConfig)
            return pretrain(self.config, corpus_dir=folder / "corpus", output_dir=output_dir, step=step)
        from stillhouse.training import steps

        assert isinstance(self.config, (FinetuneConfig, DistillConfig))
        teacher = folder / "teacher" if "teacher" in self.inputs else None
        return steps.run(
            self.config, dataset_dir=folder / "dataset", teacher_dir=teacher, output_dir=output_dir, step=step
        )


def _kinds() -> dict[str, Any]:
    """The settings of each kind of training step."""
    from stillhouse.pretraining import PretrainConfig

    return {"finetune": FinetuneConfig, "distill": DistillConfig, "pretrain": PretrainConfig}


class Place:
    """A folder that several machines see.

    Args:
        uri: a path on a volume that all of them mount, or an fsspec URI.
    """

    def __init__(self, uri: str) -> None:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self.uri = uri
        self._filesystem, self._root = url_to_fs(uri)
        self.path: Path | None = Path(self._root) if isinstance(self._filesystem, LocalFileSystem) else None
        """Where it is, if it is a path: then nothing need be copied from it."""

    def put(self, role: str, folder: Path) -> None:
        """Copy an artifact here, its manifest last, so that an artifact with a manifest is whole."""
        manifest = MANIFESTS[role].filename()
        files = [path for path in folder.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: path == folder / manifest):
            target = f"{self._root}/{role}/{file.relative_to(folder).as_posix()}"
            if self.path is not None:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            self._filesystem.put_file(str(file), target)

    def get(self, role: str, folder: Path) -> None:
        """Copy an artifact from here to a folder, and check every file of it.

        Raises:
            ManifestError: it is not there, or not as it was written.
        """
        if self.path is not None:
            if (self.path / role).is_dir():
                shutil.copytree(self.path / role, folder, dirs_exist_ok=True)
        else:
            self._filesystem.invalidate_cache()
            if self._filesystem.exists(f"{self._root}/{role}"):
                folder.mkdir(parents=True, exist_ok=True)
                self._filesystem.get(f"{self._root}/{role}/", f"{folder}/", recursive=True)
        manifest = MANIFESTS[role]
        manifest.load(folder).verify(folder)

    def check(self, role: str, folder: Path, digest: str) -> None:
        """Check that the artifact in a folder is the one meant.

        Raises:
            ManifestError: it is another.
        """
        if MANIFESTS[role].digest(folder) != digest:
            raise ManifestError(f"{self.uri}/{role}", "is not the artifact that the step was given.", "Run it again.")

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
        self._filesystem.pipe_file(f"{self._root}/{name}", json.dumps(value).encode())

    def read(self, name: str) -> Any:
        """A JSON file's value; None where there is none, or only part of one yet."""
        try:
            return json.loads(self._filesystem.cat_file(f"{self._root}/{name}"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def raise_failure(self, otherwise: TrainingError) -> None:
        """Raise what was reported as the reason of a failure, or else the given error."""
        try:
            found = self.read("failure.json")
        except Exception:  # of any object store
            found = None
        if not found:
            raise otherwise
        if found["problems"]:
            raise InputError(Problem(**problem) for problem in found["problems"])
        raise TrainingError(found["message"])

    def remove(self) -> None:
        """Delete everything here."""
        self._filesystem.invalidate_cache()
        if self._filesystem.exists(self._root):
            self._filesystem.rm(self._root, recursive=True)


@contextmanager
def reporting(place: Place) -> Iterator[None]:
    """Leave word of a foreseen error for the step, and end the process.

    Raises:
        SystemExit: with the error's exit code, after its message went to standard error.
    """
    try:
        yield
    except StillhouseError as error:
        problems = [vars(problem) for problem in error.problems] if isinstance(error, InputError) else []
        place.write("failure.json", {"message": str(error), "problems": problems})
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
