"""What the API of Kubernetes says, for people."""

from __future__ import annotations

import json

__all__ = ["api_reason"]


def api_reason(error: BaseException) -> str:
    """What the API said in an `ApiException`, without its headers; of another error, its kind and text."""
    status = getattr(error, "status", None)
    if not status:
        return f"{type(error).__name__}: {error}"
    try:
        message = json.loads(getattr(error, "body", None) or "{}")["message"]
    except (TypeError, ValueError, KeyError):
        message = getattr(error, "reason", "")
    return f"{message} (HTTP {status})"
