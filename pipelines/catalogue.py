"""The pipelines that there are, and what the commands around them must know of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from kfp.dsl.base_component import BaseComponent

from stillhouse.errors import InputError, Problem
from stillhouse.pipelines.wiring import Cluster

__all__ = ["PIPELINES", "PRETRAIN", "TRAIN_AND_DEPLOY", "Pipeline", "find_pipeline"]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One pipeline. Its module is imported when it is asked for: building a pipeline takes a second."""

    name: str
    """What `--workflow` takes."""
    summary: str
    """What it is for, as Kubeflow shows it."""
    preset_folder: str
    """Folder of its presets, in the package."""
    fallback_preset: str
    """Reaches for no hub: the rest can be checked with it where the preset that was given is unknown."""
    cluster_preset: str
    """Field of a cluster's file that names the preset there."""
    source: str
    """Parameter that must be given: what is read."""
    source_remedy: str
    """What to give."""
    placeholder: str
    """A value of that parameter with which all others can be checked."""
    sources: tuple[str, ...]
    """Parameters that locate what is read."""
    checkpoints: tuple[str, ...]
    """Parameters that name checkpoints."""
    stores: tuple[str, ...]
    """Parameters that name folders to write to."""
    schedule: Mapping[str, str]
    """Settings of scheduled runs, before those that are given."""
    inspect: Callable[[Mapping[str, Any]], Any]
    """Does what the pipeline's first step does: raises an `InputError` with everything that is wrong."""
    problems: Callable[[Mapping[str, Any]], list[Problem]]
    """Everything wrong with the parameters that can be told on any machine, without a source or a model hub."""

    @property
    def identifier(self) -> str:
        """Its name as one of Python's: of its module, and of the compiled files."""
        return self.name.replace("-", "_")

    @property
    def component(self) -> BaseComponent:
        """The pipeline as it runs on one machine."""
        found: BaseComponent = getattr(self._module(), self.identifier)
        return found

    def define(self, cluster: Cluster | None = None) -> BaseComponent:
        """The pipeline; with a `cluster`, its steps carry what they need there."""
        found: BaseComponent = self._module().define(cluster)
        return found

    def preset_on(self, cluster: Any) -> str:
        """Name of the preset that a cluster's file names for it."""
        return str(getattr(cluster, self.cluster_preset))

    def _module(self) -> Any:
        return import_module(f"stillhouse.pipelines.{self.identifier}")


# What checks parameters imports torch, so it is imported when it is called.


def _inspect_run(arguments: Mapping[str, Any]) -> Any:
    from stillhouse.inspection import inspect_run

    return inspect_run(arguments)


def _run_problems(arguments: Mapping[str, Any]) -> list[Problem]:
    from stillhouse.inspection.inspect import parameter_problems

    return parameter_problems(arguments, checkpoints=False)


def _inspect_pretraining(arguments: Mapping[str, Any]) -> Any:
    from stillhouse.inspection.pretraining import inspect_pretraining

    return inspect_pretraining(arguments)


def _pretraining_problems(arguments: Mapping[str, Any]) -> list[Problem]:
    from stillhouse.inspection.pretraining import parameter_problems

    return parameter_problems(arguments, checkpoints=False)


TRAIN_AND_DEPLOY = Pipeline(
    name="train-and-deploy",
    summary="Stillhouse: labelled text in, a small and fast gRPC endpoint out.",
    preset_folder="presets",
    fallback_preset="demo",
    cluster_preset="preset",
    source="data",
    source_remedy="Name a file, a folder, hub://OWNER/NAME or demo://reviews.",
    placeholder="demo://reviews",
    sources=("data", "validation_data", "test_data"),
    checkpoints=("teacher", "albert", "student"),
    stores=("checkpoint_dir",),
    # Left alone, it should cost next to nothing where nothing has changed; what is given explicitly wins.
    schedule={"skip_unchanged": "true"},
    inspect=_inspect_run,
    problems=_run_problems,
)

PRETRAIN = Pipeline(
    name="pretrain",
    summary="Stillhouse: documents in, a pretrained checkpoint out.",
    preset_folder="presets/pretrain",
    fallback_preset="tiny",
    cluster_preset="pretrain_preset",
    source="corpus",
    source_remedy="Name a text, JSONL or Parquet file, or a folder of them.",
    placeholder="https://corpus.invalid/corpus.txt",
    sources=("corpus",),
    checkpoints=("tokenizer", "model", "teacher"),
    stores=("checkpoint_dir", "output"),
    schedule={},
    inspect=_inspect_pretraining,
    problems=_pretraining_problems,
)

PIPELINES = {one.name: one for one in (TRAIN_AND_DEPLOY, PRETRAIN)}


def find_pipeline(name: str) -> Pipeline:
    """The pipeline of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PIPELINES:
        raise InputError(Problem("--workflow", f"{name!r} is unknown.", f"Choose one of: {', '.join(PIPELINES)}."))
    return PIPELINES[name]
