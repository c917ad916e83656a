"""What may be secret in an address, and how the address is shown: without users, passwords and queries.

A setting is kept in `run.json`, printed, and logged, so no such place may hold a password or a signed link.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["holds_credentials", "redacted"]

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s'\"]*)")
# A secret key may hold a slash; a port holds digits alone.
_USER_INFO = re.compile(r"^([^/@?#]*|[^/@?#:]*:(?!\d+/)[^@?#]*)@")
_OWN_GRAMMAR = ("demo", "hub", "minilm", "scratch", "sqlite", "teacher")
"""Schemes whose addresses hold nothing secret, and in which `?` and `@` mean something else."""
_BUCKETS = ("s3", "gs", "gcs")


def redacted(value: Any) -> Any:
    """The value (text, or JSON values with text) with `***` in place of user, password and query of each address."""
    if isinstance(value, dict):
        return {key: redacted(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(entry) for entry in value]
    return _ADDRESS.sub(_shown, value) if isinstance(value, str) else value


def _shown(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"], match["rest"]
    if scheme.lower() not in _OWN_GRAMMAR:
        rest = re.sub(r"\?.+", "?***", _USER_INFO.sub("***@", rest))
    return f"{scheme}://{rest}"


def holds_credentials(address: str) -> bool:
    """Whether an address carries a user's secret: a password, or anything before the `@` of a web address or bucket.

    A query is no credential by itself: signed links are good for one file, and for a time.
    """
    match = _ADDRESS.fullmatch(address.strip())
    if match is None or (scheme := match["scheme"].lower()) in _OWN_GRAMMAR:
        return False
    host = re.split(r"[/?#]", match["rest"], maxsplit=1)[0]
    if scheme in _BUCKETS:
        return "@" in host or ":" in host
    user, at, _ = host.rpartition("@")
    return bool(at) and (":" in user or scheme in ("http", "https"))
