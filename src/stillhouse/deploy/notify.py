"""Tell a webhook how a run ended."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request

from stillhouse import __version__
from stillhouse.data.location import public_name
from stillhouse.errors import StillhouseError
from stillhouse.registry import MlflowRegistry, RunRecord

__all__ = ["WEBHOOK_VARIABLE", "notify"]

WEBHOOK_VARIABLE = "STILLHOUSE_WEBHOOK_URL"
"""Environment variable with the webhook's URL; often a secret in itself, so it is never a parameter nor logged."""
_log = logging.getLogger(__name__)


def notify(
    *,
    state: str,
    model_name: str,
    data: str,
    error: str = "",
    tracking_uri: str = "",
    pipeline_run: str = "",
    timeout_s: float = 10.0,
) -> bool:
    """POST the outcome as JSON with a `text` for chat webhooks, and say whether it was taken.

    Returns False, and does nothing, where `STILLHOUSE_WEBHOOK_URL` is not set. A webhook that fails is logged and
    otherwise ignored: a run that succeeded has not failed because nobody could be told.

    Args:
        state: the orchestrator's word for how the run ended.
        model_name: of the registered model.
        data: source of the training rows; shown without secrets.
        error: what the orchestrator says went wrong.
        tracking_uri: the registry, which knows what came of the run.
        pipeline_run: what the orchestrator calls the run.
        timeout_s: how long to wait for the webhook.
    """
    url = os.environ.get(WEBHOOK_VARIABLE, "")
    if not url:
        return False
    record = _record(tracking_uri, pipeline_run)
    outcome, reason, version = (record.outcome, record.reason, record.version) if record else ("", "", "")
    ended = _ended(state, outcome)
    verdict = f"{outcome.capitalize()}{f' (version {version})' if version else ''}: {reason}" if outcome else ""
    body = {
        "text": " ".join(filter(None, [f"Stillhouse: the run for {model_name} {ended}.", verdict, error])),
        "state": state,
        "model_name": model_name,
        "model_version": version,
        "outcome": outcome,
        "outcome_reason": reason,
        "data": public_name(data),
        "error": error,
        "pipeline_run": pipeline_run,
        "stillhouse_version": __version__,
    }
    try:
        request = urllib.request.Request(
            url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return bool(200 <= response.status < 300)
    except (urllib.error.URLError, ValueError, OSError) as failure:
        # Only the kind of failure: an URLError's text can carry the URL.
        _log.warning("the webhook was not reached (%s)", type(failure).__name__)
        return False


def _ended(state: str, outcome: str) -> str:
    """How the run ended, in a word."""
    if state.upper() == "RUNNING":
        # Releases of Kubeflow never say that a loop has ended, nor what it stands in (kubeflow/pipelines#13321).
        return {"": "ended", "failed": "failed"}.get(outcome, "succeeded")
    return "succeeded" if state.upper() in ("SUCCEEDED", "COMPLETE") else "failed"


def _record(tracking_uri: str, pipeline_run: str) -> RunRecord | None:
    """What the run left in the registry; None where it left nothing, or the registry cannot be read."""
    if not pipeline_run:
        return None
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # people wait for the message
    try:
        return MlflowRegistry(tracking_uri).run_record(pipeline_run)
    except StillhouseError as failure:
        _log.warning("what came of the run is not known: %s", failure)
        return None
