"""What a run of the pipeline leaves in MLflow, found by the id of the pipeline's run.

Each run leaves one MLflow run with the tags `stillhouse.pipeline_run`, `stillhouse.outcome` and
`stillhouse.outcome_reason`: the run that logs its evaluation; or a small one, where it stopped early or registered
nothing new, which then names in `stillhouse.evaluation_run_id` the run that logged the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.registry.register import TAG_PREFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["OUTCOMES", "RunRecord", "download_evaluation", "find_run", "leave_run"]

OUTCOMES = {
    "unchanged": "stopped early: the source has not changed since the champion was trained",
    "registered": "registered a version, and nothing was to be deployed",
    "challenger": "registered a version that does not replace the champion",
    "deployed": "deployed its version, which is the champion now",
    "kept": "made the champion's own package again, which stays deployed",
    "failed": "registered a version, and could not deploy it",
    "pretrained": "pretrained a checkpoint",
}
"""What can come of a run that got as far as to know its source or its model."""
_FILES = ("evaluation.json", "report.html")
_PARENT = "mlflow.parentRunId"
_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One MLflow run that bears the tag `stillhouse.pipeline_run`."""

    run_id: str
    """MLflow's."""
    tags: dict[str, str] = field(default_factory=dict)
    """Stillhouse's, without their prefix."""
    evaluation_dir: Path | None = None
    """`evaluation.json` and `report.html`; None where they were not fetched, or the run evaluated nothing."""

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`."""
        return self.tags.get("outcome", "")

    @property
    def reason(self) -> str:
        """Why it is that, in a sentence or two."""
        return self.tags.get("outcome_reason", "")

    @property
    def model_name(self) -> str:
        """The registered model."""
        return self.tags.get("model_name", "")

    @property
    def version(self) -> str:
        """The registered version; empty where the run registered none."""
        return self.tags.get("model_version", "")


def find_run(client: MlflowClient, pipeline_run: str) -> RunRecord | None:
    """The newest record of that run of the pipeline."""
    if not pipeline_run or not all(letter.isalnum() or letter in "-_." for letter in pipeline_run):
        return None  # Kubeflow's ids are UUIDs; anything else has no place in a filter
    experiments, token = [], None
    while True:
        page = client.search_experiments(max_results=_PAGE, page_token=token)
        experiments += [entry.experiment_id for entry in page]
        if not (token := page.token):
            break
    wanted = f"tags.`{TAG_PREFIX}pipeline_run` = '{pipeline_run}'"
    found: list[Any] = []
    if experiments:
        found = client.search_runs(experiments, wanted, order_by=["attributes.start_time DESC"])
    run = next((entry for entry in found if _PARENT not in entry.data.tags), None)
    if run is None:
        return None
    tags = {k.removeprefix(TAG_PREFIX): v for k, v in run.data.tags.items() if k.startswith(TAG_PREFIX)}
    return RunRecord(run_id=str(run.info.run_id), tags=tags)


def download_evaluation(client: MlflowClient, record: RunRecord, destination: Path) -> RunRecord:
    """The record with its evaluation in the folder `destination`, where it has one."""
    run_id = record.tags.get("evaluation_run_id", record.run_id)
    present = {entry.path for entry in client.list_artifacts(run_id)}
    if _FILES[0] not in present:
        return record
    destination.mkdir(parents=True, exist_ok=True)
    for name in present.intersection(_FILES):
        client.download_artifacts(run_id, name, str(destination))
    return replace(record, evaluation_dir=destination)


def leave_run(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Write a small run that says only how things ended, and return its id."""
    prefixed = {TAG_PREFIX + key: value for key, value in tags.items()}
    run_id = str(client.create_run(experiment, run_name=name or None, tags=prefixed).info.run_id)
    client.set_terminated(run_id)
    return run_id
