"""Where folders are kept that outlive a step: a path, or the URI of an object store."""

from __future__ import annotations

from pathlib import Path

from stillhouse.errors import Problem

__all__ = ["local_path", "store_problems"]

_READ_ONLY = ("http", "https", "data", "github", "git", "zip", "tar", "hub", "demo")


def local_path(location: str) -> Path | None:
    """The path that a location names, plainly or as `file://`; None for the URI of an object store."""
    scheme, separator, rest = location.partition("://")
    if not separator:
        return Path(location).expanduser()
    return Path(rest) if scheme.lower() in ("file", "local") else None


def store_problems(location: str, parameter: str, *, installed: bool = False) -> list[Problem]:
    """What is wrong with the scheme of a folder for checkpoints.

    Args:
        location: a path or URI; empty is none.
        parameter: that names it.
        installed: ask for its client too.
    """
    if not location or local_path(location) is not None:
        return []
    import fsspec

    scheme = location.partition("://")[0]
    remedy = "Give a path, s3:// or gs://."
    if scheme in _READ_ONLY or scheme not in fsspec.available_protocols():
        return [Problem(parameter, f"checkpoints cannot be kept at {scheme}://.", remedy)]
    if installed:
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            return [Problem(parameter, f"{scheme}:// takes a package that is not installed: {error}.", remedy)]
    return []
