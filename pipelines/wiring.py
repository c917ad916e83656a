"""What the pipelines share: how a step is put in, what a cluster adds to it, and how they describe themselves."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import docstring_parser
from kfp import dsl
from kfp.dsl.base_component import BaseComponent

__all__ = ["Cluster", "Wiring", "description"]


class Cluster(Protocol):
    """What a cluster adds to each step; see `stillhouse.pipelines.placement`."""

    def apply(self, tasks: Iterable[dsl.PipelineTask], training: Mapping[str, Any]) -> None:
        """Set resources, placement, environment, volumes, retries and timeouts.

        Args:
            tasks: all tasks of the pipeline.
            training: `cpu`, `memory`, `gpus`, `gpu_type`, `node_selector` and `tolerations` of the steps that train,
                which are known when the pipeline runs.
        """


class Wiring:
    """Puts steps into a pipeline, and passes the pipeline's parameters on to those that take them.

    Args:
        parameters: the pipeline's, by name.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = parameters
        self.tasks: list[dsl.PipelineTask] = []
        """All steps so far."""

    def step(self, title: str, component: BaseComponent, *, cached: bool = True, **inputs: Any) -> dsl.PipelineTask:
        """A step: its component takes the pipeline's parameters of the same names, but for what `inputs` says."""
        known = component.component_spec.inputs or {}
        given = {name: value for name, value in self._parameters.items()
                 if name in known and not known[name].type.startswith("system.")}  # fmt: skip
        task = component(**{**given, **inputs}).set_display_name(title).set_caching_options(cached)
        self.tasks.append(task)
        return task


def description(function: Callable[..., Any]) -> str:
    """The docstring with its parameters, since the Kubeflow UI shows a pipeline's description, but not theirs."""
    parsed = docstring_parser.parse(function.__doc__ or "")
    lines = [f"- {entry.arg_name}: {entry.description}" for entry in parsed.params]
    return "\n".join([parsed.short_description or "", "", "Parameters:", *lines])
