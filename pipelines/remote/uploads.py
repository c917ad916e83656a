"""Pipelines on Kubeflow: compiled for a cluster, and uploaded once per content."""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from stillhouse import __version__
from stillhouse.errors import InputError, Problem, StillhouseError
from stillhouse.pipelines.catalogue import TRAIN_AND_DEPLOY, Pipeline, find_pipeline
from stillhouse.pipelines.compiling import cluster_defaults, cluster_names, compiled_yaml
from stillhouse.pipelines.parameters import arguments_for, read_preset
from stillhouse.pipelines.remote.connection import Api

__all__ = ["Compiled", "Uploaded", "compile_for", "pipeline_spec", "upload"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,98}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A pipeline for one cluster, and what a run of it is given."""

    workflow: Pipeline
    """Which one."""
    name: str
    """Of the pipeline on Kubeflow: one for each cluster, or the latest version for one were run on another."""
    text: str
    """IR YAML; empty where something is wrong."""
    arguments: dict[str, Any]
    """Every parameter's value in this run."""
    changed: dict[str, Any]
    """Those that differ from the compiled defaults."""

    @property
    def version(self) -> str:
        """Name of the version: the release, and a digest of the content."""
        return f"{__version__}-{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A version of the pipeline on Kubeflow."""

    pipeline: str
    pipeline_id: str
    version: str
    version_id: str
    new: bool
    """Whether this upload made it."""


def compile_for(
    cluster_name: str,
    *,
    preset: str = "",
    settings: Sequence[str] = (),
    name: str = "",
    workflow: str = "",
    scheduled: bool = False,
) -> tuple[Compiled, list[Problem]]:
    """Compile a pipeline for a cluster, and work out the arguments of a run; also everything wrong with these.

    The compiled pipeline is the same for all arguments: its defaults are the cluster's.

    Args:
        cluster_name: of one that comes with this release, or the path of a cluster's file.
        preset: goes before the cluster's own; empty takes that.
        settings: `key=value`, which go before both.
        name: of the pipeline on Kubeflow; empty derives it from the cluster's.
        workflow: which pipeline; empty takes the main one.
        scheduled: a schedule runs it: with its pipeline's own settings for that, before `settings`.
    """
    pipeline, problems = TRAIN_AND_DEPLOY, list[Problem]()
    try:
        pipeline = find_pipeline(workflow or pipeline.name)
    except InputError as error:
        problems += error.problems
    cluster, defaults, wrong = cluster_defaults(cluster_name, pipeline)
    problems += wrong
    try:
        read_preset(preset or pipeline.preset_on(cluster), pipeline)
    except InputError as error:
        problems += error.problems
        preset = ""  # so that the rest can still be checked
    own = [f"{key}={value}" for key, value in pipeline.schedule.items()] if scheduled else []
    arguments, wrong = arguments_for(
        preset or pipeline.preset_on(cluster), [*own, *settings], cluster=cluster.defaults(), pipeline=pipeline
    )
    problems += wrong
    slug = _slug(cluster_name)
    if not name and slug in cluster_names() and cluster_name not in cluster_names():
        what = f"{Path(cluster_name).name} would be uploaded as the pipeline of the release's own cluster {slug}."
        problems.append(Problem("--cluster", what, "Name the file otherwise, or give --pipeline."))
    name = name or f"{pipeline.component.pipeline_spec.pipeline_info.name}-{slug}"
    if not _NAME.fullmatch(name):
        problems.append(Problem("--pipeline", f"{name!r} is not a name.", "Use a-z, 0-9 and hyphens, at most 100."))
    text = "" if problems else compiled_yaml(cluster, defaults, pipeline)
    changed = {key: value for key, value in arguments.items() if key not in defaults or defaults[key] != value}
    return Compiled(workflow=pipeline, name=name, text=text, arguments=arguments, changed=changed), problems


def _slug(cluster_name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", Path(cluster_name).stem.lower()).strip("-")[:60] or "cluster"


def pipeline_spec(text: str) -> pipeline_spec_pb2.PipelineSpec:
    """The pipeline of an IR YAML; what follows it in the file is for the platform."""
    body = next(iter(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))
    return json_format.ParseDict(body, pipeline_spec_pb2.PipelineSpec())


def upload(api: Api, compiled: Compiled, *, latest: bool = False) -> Uploaded:
    """The version of the pipeline that has this content; uploaded, and the pipeline created, if it is not there.

    Args:
        api: Kubeflow Pipelines.
        compiled: the pipeline.
        latest: it must be the latest version, which schedules follow; so after a return to an older release, its
            content is uploaded once more.

    Raises:
        StillhouseError: Kubeflow Pipelines refused, or did not answer.
    """
    pipeline = _find_pipeline(api, compiled.name) or _create_pipeline(api, compiled)
    versions = list(
        api.pages(
            "list the pipeline's versions", api.pipelines.pipeline_service_list_pipeline_versions,
            "pipeline_versions", pipeline.pipeline_id, sort_by="created_at desc",
        )
    )  # fmt: skip
    known = {_name(version): version for version in versions}
    same = re.compile(re.escape(compiled.version) + r"(-\d+)?")
    found = next((version for name, version in known.items() if same.fullmatch(name)), None)
    if found is not None and latest and found is not versions[0]:
        found = None
    new = found is None
    if found is None:
        found = _upload_version(api, pipeline.pipeline_id, compiled, _free_name(compiled.version, known))
    return Uploaded(
        pipeline=compiled.name,
        pipeline_id=pipeline.pipeline_id,
        version=_name(found),
        version_id=found.pipeline_version_id,
        new=new,
    )


def _find_pipeline(api: Api, name: str) -> Any:
    predicate = kfp_server_api.V2beta1Predicate(
        operation=kfp_server_api.V2beta1PredicateOperation.EQUALS, key="name", string_value=name
    )
    chosen = json.dumps(
        kfp_server_api.ApiClient().sanitize_for_serialization(kfp_server_api.V2beta1Filter(predicates=[predicate]))
    )
    found = api.pages(
        "look for the pipeline", api.pipelines.pipeline_service_list_pipelines, "pipelines",
        filter=chosen, **api.namespace,
    )  # fmt: skip
    return next((pipeline for pipeline in found if name in (pipeline.name, pipeline.display_name)), None)


def _create_pipeline(api: Api, compiled: Compiled) -> Any:
    # Without a version: `upload` names the first one after the pipeline, and this one bears the name of its content.
    body = kfp_server_api.V2beta1Pipeline(
        name=compiled.name,
        display_name=compiled.name,
        description=compiled.workflow.summary,
        **api.namespace,
    )
    return api.call("create the pipeline", api.pipelines.pipeline_service_create_pipeline, body)


def _upload_version(api: Api, pipeline_id: str, compiled: Compiled, name: str) -> Any:
    digest = hashlib.sha256(compiled.text.encode()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(compiled.text, encoding="utf-8")
        version = api.call(
            "upload the pipeline", api.uploads.upload_pipeline_version, str(path),
            name=name, display_name=name, pipelineid=pipeline_id, description=f"Stillhouse {__version__}, sha256 {digest}",
        )  # fmt: skip
    if not version.pipeline_version_id:
        raise StillhouseError("Could not upload the pipeline: the answer names no version.")
    return version


def _free_name(name: str, known: Any) -> str:
    number = 2
    free = name
    while free in known:
        free, number = f"{name}-{number}", number + 1
    return free


def _name(version: Any) -> str:
    return str(version.name or version.display_name)
