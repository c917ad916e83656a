"""Tell a webhook how a run ended."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request

from stillhouse import __version__
from stillhouse.data.location import public_name

__all__ = ["WEBHOOK_VARIABLE", "notify"]

WEBHOOK_VARIABLE = "STILLHOUSE_WEBHOOK_URL"
"""Environment variable with the webhook's URL; often a secret in itself, so it is never a parameter nor logged."""
_log = logging.getLogger(__name__)


def notify(*, state: str, model_name: str, data: str, error: str = "", timeout_s: float = 10.0) -> bool:
    """POST the outcome as JSON with a `text` for chat webhooks, and say whether it was taken.

    Returns False, and does nothing, where `STILLHOUSE_WEBHOOK_URL` is not set. A webhook that fails is logged and
    otherwise ignored: a run that succeeded has not failed because nobody could be told.
    """
    url = os.environ.get(WEBHOOK_VARIABLE, "")
    if not url:
        return False
    outcome = "succeeded" if state.upper() in ("SUCCEEDED", "COMPLETE") else "failed"
    body = {
        "text": f"Stillhouse: the run for {model_name} {outcome}." + (f" {error}" if error else ""),
        "state": state,
        "model_name": model_name,
        "data": public_name(data),
        "error": error,
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
