"""What may be secret in an address, and how the address is shown: without users, passwords and queries.

A setting is kept in `run.json`, printed, and logged, so no such place may hold a password or a signed link.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["holds_credentials", "redacted", "without_secrets"]

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s'\"]*)")
# A secret key may hold a slash; a port holds digits alone.
_USER_INFO = re.compile(r"^([^/@?#]*|[^/@?#:]*:(?!\d+/)[^@?#]*)@")
_OWN_GRAMMAR = ("demo", "hub", "minilm", "scratch", "sqlite", "teacher")
"""Schemes whose addresses hold nothing secret, and in which `?` and `@` mean something else."""
_BUCKETS = ("s3", "gs", "gcs")
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CONNECTION_STRING|CREDENTIAL|SIGNATURE")
_SHORTEST_SECRET = 8  # characters; a shorter value would be found in ordinary words


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


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with `***` in place of every value of an environment variable that is named like a secret.

    For messages of libraries that take their keys from the environment.
    """
    for name, value in (os.environ if environment is None else environment).items():
        if not _SECRET_NAME.search(name.upper()) or value.startswith("/"):  # a file's path is no secret
            continue
        # Azure's connection strings are lists of key=value.
        parts = (part.partition("=") for part in value.split(";"))
        for secret in (value, *(entry for key, _, entry in parts if _SECRET_NAME.search(key.upper()))):
            text = text.replace(secret, "***") if len(secret) >= _SHORTEST_SECRET else text
    return text
