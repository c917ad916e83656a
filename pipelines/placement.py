"""What a cluster adds to the steps of a pipeline: images, resources, secrets, volumes, retries and timeouts.

A cluster is described by one YAML file, `clusters/gpu.yaml` for example. What is in it is fixed when the pipeline is
compiled; what may differ from run to run (GPUs, CPUs and memory of the training, and the nodes it runs on) are
parameters of the pipeline, whose defaults the file may set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_channel import extract_pipeline_channels_from_any
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stillhouse import __version__
from stillhouse.components import images
from stillhouse.deploy.kubernetes.access import DEPLOYER
from stillhouse.training.scale import CPU, toleration_problems

__all__ = ["PARTS", "STEPS", "TRAINING", "Cluster"]

CACHE_MOUNT = "/cache"
CHECKPOINTS_MOUNT = "/checkpoints"
DEPLOYER_MOUNT = str(DEPLOYER)
STEPS = (
    "inspect_source",
    "prepare_data",
    "finetune",
    "distill",
    "package",
    "fetch_champion",
    "evaluate",
    "register",
    "deploy",
    "inspect_corpus",
    "prepare_corpus",
    "pretrain",
    "record_pretraining",
    "notify",
)  # fmt: skip
TRAINING = ("finetune", "distill", "pretrain")
_CACHING = (
    "inspect_source",
    "prepare_data",
    "finetune",
    "inspect_corpus",
    "prepare_corpus",
    "pretrain",
    "record_pretraining",
)  # fmt: skip
"""Steps that read from a model hub; and the one that writes where these read checkpoints from."""


def _matching(pattern: str | re.Pattern[str], kind: str, example: str) -> AfterValidator:
    """Takes text of one form; its error holds what is wrong, and what to write."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is not {kind}.", f"Write it as {example}.")
        return text

    return AfterValidator(check)


def _one_of(names: Iterable[str], kind: str) -> AfterValidator:
    known = tuple(names)

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"{name!r} is not {kind}.", f"There are: {', '.join(known)}.")
        return name

    return AfterValidator(check)


def _written(value: Any) -> Any:
    """A number as text: YAML reads `cpu: 2` as one, and all else takes text."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Step = Annotated[str, _one_of(STEPS, "a step")]
Cpu = Annotated[str, BeforeValidator(_written), _matching(CPU, "a number of CPUs", "2 or 500m")]
# kfp takes whole numbers alone.
Memory = Annotated[
    str,
    BeforeValidator(_written),
    _matching(r"[1-9][0-9]*(E|Ei|P|Pi|T|Ti|G|Gi|M|Mi|K|Ki)?", "an amount of memory", "2Gi or 512Mi"),
]
Name = Annotated[
    str, Field(max_length=253), _matching(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "a Kubernetes name", "hub-token")
]
Claim = Annotated[str, _matching(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?", "the name of a claim", "hub-cache")]
SecretName = Annotated[str, _matching(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?", "the name of a secret", "deployer")]
Variable = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable", "HF_TOKEN")]
Registry = Annotated[
    str, _matching(r"[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*/?", "an image registry", "registry.example.com/team")
]
Tag = Annotated[str, _matching(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", "the tag of an image", '"1.0"')]


class _Part(BaseModel):
    """A part of the file; a field that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Images(_Part):
    """Where the container images are pulled from."""

    registry: Registry = images.REGISTRY
    """Registry and path in front of the images' names."""
    tag: Tag = __version__
    """This release's, where it is not given."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: list[Name] = []


class Secret(_Part):
    """A Kubernetes secret whose keys are environment variables; passed over where it, or a key, does not exist."""

    name: Name
    variables: list[Variable] = Field(min_length=1)
    steps: list[Step] = Field(min_length=1)


class Volumes(_Part):
    """Persistent volume claims that exist; empty mounts none."""

    cache: Claim = ""
    """Keeps hub downloads, at `/cache`."""
    checkpoints: Claim = ""
    """Keeps resumable checkpoints, at `/checkpoints`, and makes that the default of `checkpoint_dir`."""


class Toleration(_Part):
    """A taint that is tolerated; see Toleration v1 core in the Kubernetes API."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    tolerationSeconds: int | None = None

    @model_validator(mode="after")
    def _tolerates_something(self) -> Toleration:
        for problem in toleration_problems(self.model_dump(exclude_unset=True)):
            raise ValueError(problem.what, problem.remedy)
        return self


class TrainingNodes(_Part):
    """Where training runs, whatever the run's parameters say. Some releases of Kubeflow Pipelines heed these alone."""

    selector: dict[str, str] = {}
    """Labels of the nodes. Given, the parameter `node_selector` has no effect."""
    tolerations: list[Toleration] = []
    """Beside those of the parameter `tolerations`."""


class StepSettings(_Part):
    """One step's pod. Of the steps that train, CPU and memory are parameters of the pipeline."""

    cpu: Cpu = "1"
    """CPUs requested; there is no limit, so that idle cores can be used."""
    memory: Memory = "2Gi"
    """Memory requested, which is also the limit."""
    retries: int = Field(default=2, ge=0, le=20)
    backoff_seconds: int = Field(default=30, ge=0)
    """Before the first retry."""
    backoff_factor: float = Field(default=2.0, ge=1, strict=False)
    """By which the wait grows with each retry."""
    timeout_minutes: int = Field(default=60, ge=1)


class Cluster(_Part):
    """A cluster's file, as the `cluster` of a pipeline's `define`."""

    preset: str = "base"
    """Preset of the main pipeline that the parameters' defaults are taken from."""
    pretrain_preset: str = "bert-base"
    """The same of the pretraining pipeline."""
    parameters: dict[str, Any] = {}
    """Defaults of the pipelines' parameters, before the preset's; each pipeline takes those that it has."""
    images: Images = Images()
    environment: dict[Variable, str] = {}
    """Environment of every step. Not for secrets: it can be read in the compiled pipeline."""
    secrets: list[Secret] = []
    deployer: SecretName = "stillhouse-deployer"
    """The secret with which the deploy step alone serves: keys `token`, `ca.crt`, `namespace`. Passed over where it does
    not exist; empty mounts none."""
    volumes: Volumes = Volumes()
    training_nodes: TrainingNodes = TrainingNodes()
    steps: dict[Annotated[str, _one_of(("default", *STEPS), "a step")], StepSettings] = {}
    """Settings by step; `default` is for the steps, and the fields, that are not named."""

    def settings(self, step: str) -> StepSettings:
        """The settings of a step, by the name of its component."""
        given = [self.steps[name].model_dump(exclude_unset=True) for name in ("default", step) if name in self.steps]
        return StepSettings(**{name: value for part in given for name, value in part.items()})

    def apply(self, tasks: Iterable[dsl.PipelineTask], training: Mapping[str, Any]) -> None:
        """Set what each task needs on the cluster.

        Args:
            tasks: all tasks of the pipeline.
            training: `cpu`, `memory`, `gpus`, `gpu_type`, `node_selector` and `tolerations` of the steps that train,
                as parameters of the pipeline or outputs of its tasks.
        """
        for task in tasks:
            step = task.component_spec.name.replace("-", "_")
            self._apply_image(task)
            self._apply_environment(task, step)
            self._apply_settings(task, self.settings(step), training if step in TRAINING else None)
            if step in TRAINING:
                self._apply_nodes(task, training)

    def _apply_image(self, task: dsl.PipelineTask) -> None:
        released = task.container_spec.image
        name = released.rpartition("/")[2].partition(":")[0].removeprefix("stillhouse-")
        task.set_container_image(images.image(name, registry=self.images.registry, tag=self.images.tag))
        kubernetes.set_image_pull_policy(task, self.images.pull_policy)
        if self.images.pull_secrets:
            kubernetes.set_image_pull_secrets(task, self.images.pull_secrets)

    def _apply_environment(self, task: dsl.PipelineTask, step: str) -> None:
        for name, value in self.environment.items():
            task.set_env_variable(name, value)
        for secret in self.secrets:
            if step in secret.steps:
                keys = {name: name for name in secret.variables}
                kubernetes.use_secret_as_env(task, secret.name, keys, optional=True)
        if step == "deploy" and self.deployer:
            kubernetes.use_secret_as_volume(task, self.deployer, DEPLOYER_MOUNT, optional=True)
        if self.volumes.cache and step in _CACHING:
            kubernetes.mount_pvc(task, self.volumes.cache, CACHE_MOUNT)
            task.set_env_variable("HF_HOME", f"{CACHE_MOUNT}/huggingface")
        if self.volumes.checkpoints and step in TRAINING:
            kubernetes.mount_pvc(task, self.volumes.checkpoints, CHECKPOINTS_MOUNT)

    @staticmethod
    def _apply_settings(task: dsl.PipelineTask, settings: StepSettings, training: Mapping[str, Any] | None) -> None:
        cpu = training["cpu"] if training else settings.cpu
        memory = training["memory"] if training else settings.memory
        task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory)
        if training:
            # kfp hands a channel down into a nested group only where a task counts it among its inputs.
            task.register_pipeline_channels(extract_pipeline_channels_from_any(list(training.values())))
            task.set_accelerator_type(training["gpu_type"]).set_accelerator_limit(training["gpus"])
        if settings.retries:
            task.set_retry(
                settings.retries,
                backoff_duration=f"{settings.backoff_seconds}s",
                backoff_factor=settings.backoff_factor,
                backoff_max_duration="3600s",
            )
        kubernetes.set_timeout(task, settings.timeout_minutes * 60)

    def _apply_nodes(self, task: dsl.PipelineTask, training: Mapping[str, Any]) -> None:
        if self.training_nodes.selector:
            for label, value in self.training_nodes.selector.items():
                kubernetes.add_node_selector(task, label, value)
        else:
            kubernetes.add_node_selector_json(task, training["node_selector"])
        for one in self.training_nodes.tolerations:
            given = one.model_dump(exclude_unset=True)
            seconds = given.pop("tolerationSeconds", None)
            kubernetes.add_toleration(task, **given, toleration_seconds=seconds)
        kubernetes.add_toleration_json(task, training["tolerations"])

    def defaults(self) -> dict[str, Any]:
        """Defaults of the pipeline's parameters on this cluster, beyond the preset's."""
        mounted = {"checkpoint_dir": CHECKPOINTS_MOUNT} if self.volumes.checkpoints else {}
        return {**mounted, **self.parameters}


PARTS: Mapping[str, type[BaseModel]] = {
    "": Cluster,
    "images": Images,
    "secrets": Secret,
    "volumes": Volumes,
    "training_nodes": TrainingNodes,
    "training_nodes.tolerations": Toleration,
    "steps": StepSettings,
}
"""What describes each part of a cluster's file."""
