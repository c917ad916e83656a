"""Optional parts of the installation, and what to say when one is absent."""

from __future__ import annotations

from importlib.util import find_spec

from stillhouse.errors import InputError, Problem

__all__ = ["require"]


def require(module: str, extra: str, purpose: str) -> None:
    """Check, without importing it, that a module is installed.

    Args:
        module: top-level name of the module.
        extra: the extra of the distribution that brings it.
        purpose: what needs it, to begin a sentence with.

    Raises:
        InputError: it is not installed.
    """
    if find_spec(module) is None:
        raise InputError(
            Problem(
                "installation", f"{purpose} needs {module!r}, which is absent.", f"pip install 'stillhouse[{extra}]'"
            )
        )
