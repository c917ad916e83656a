"""Reaching an MLflow server or database: quietly, with errors that people can act on, and without leaking secrets."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

from stillhouse.errors import Problem, RegistryError
from stillhouse.state import TRACKING_VARIABLE

__all__ = [
    "absolute_uri",
    "as_default",
    "load_mlflow",
    "redact",
    "registry_errors",
    "resolve_uri",
    "sqlite_path",
    "uri_problems",
]

_REGISTRY_VARIABLE = "MLFLOW_REGISTRY_URI"
_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    # The default of 7, with doubling pauses, keeps a user in front of a dead server for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}
_USER_INFO = re.compile(r"(?<=://)[^/@\s'\"]*@")


def load_mlflow() -> ModuleType:
    """Import MLflow with its telemetry, progress bars and chatter off; what the environment sets already is kept.

    Raises:
        RegistryError: MLflow is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
    except ImportError:
        raise RegistryError("MLflow is not installed. Install it with: pip install 'stillhouse[train]'") from None
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def redact(text: str, uri: str = "") -> str:
    """`text` without user names and passwords of any URI in it, nor the password of `uri` on its own."""
    text = _USER_INFO.sub("", text)
    try:
        password = urlsplit(uri).password or ""
    except ValueError:
        password = ""
    for secret in {password, unquote(password)} - {""}:
        text = text.replace(secret, "***")
    return text


def sqlite_path(uri: str) -> Path | None:
    """The database file of a `sqlite:///` URI; None for any other kind."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.split("+")[0] != "sqlite":
        return None
    # sqlite:///relative.db and sqlite:////absolute.db, with options after a question mark
    return Path(unquote(rest.partition("?")[0].removeprefix("/")))


def absolute_uri(uri: str) -> str:
    """The same URI, with the path of a SQLite database made absolute: steps do not share a working directory."""
    path = sqlite_path(uri)
    if path is None:
        return uri
    query = uri.partition("?")[2]
    return f"sqlite:///{path.expanduser().absolute()}" + (f"?{query}" if query else "")


def resolve_uri(uri: str) -> str:
    """The tracking URI to use: the one given, else what `MLFLOW_TRACKING_URI` says."""
    return uri or os.environ.get(TRACKING_VARIABLE, "")


def uri_problems(uri: str, *, shown: bool = True) -> list[Problem]:
    """What is wrong with a tracking URI, where empty leaves it to the environment.

    Args:
        uri: as it was given.
        shown: it is a parameter, which everyone can see, so that it must hold no password.
    """
    used = resolve_uri(uri)
    if not used:
        remedy = f"Give it, or set the environment variable {TRACKING_VARIABLE}."
        return [Problem("tracking_uri", "no model registry is named.", remedy)]
    found = []
    scheme, separator, rest = used.partition("://")
    if not (separator and rest.strip("/") and scheme.split("+")[0] in _SCHEMES):
        remedy = "Give sqlite:///PATH/mlflow.db, or the http(s):// address of an MLflow server."
        found.append(Problem("tracking_uri", f"{redact(used, used)!r} is not the address of a model registry.", remedy))
    try:
        parts = urlsplit(uri)
        password = parts.password or "password=" in parts.query
    except ValueError:
        password = False
    if shown and password:
        remedy = f"Put it into the environment variable {TRACKING_VARIABLE}, from a secret, and leave this empty."
        found.append(Problem("tracking_uri", "holds a password, and parameters are shown to everyone.", remedy))
    return found


@contextmanager
def as_default(uri: str) -> Iterator[ModuleType]:
    """MLflow with `uri` as its tracking and registry address, and what was set before afterwards."""
    mlflow = load_mlflow()
    # MLflow writes every address that it is given into the environment too, where it would outlive this block and reach
    # other processes. Without one of its own, it goes by those two variables: to restore them restores everything.
    variables = {name: os.environ.get(name) for name in (TRACKING_VARIABLE, _REGISTRY_VARIABLE)}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield mlflow
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def registry_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn what MLflow, its database driver, the network or the disk raise into one `RegistryError`.

    Args:
        uri: the tracking URI; shown without its password.
        doing: what was attempted, as in "register the model".
    """
    load_mlflow()
    import requests  # type: ignore[import-untyped,unused-ignore]
    from mlflow.exceptions import MlflowException

    failures: list[type[Exception]] = [MlflowException, requests.RequestException, OSError]
    with suppress(ImportError):  # mlflow-skinny reaches servers alone, and comes without it
        import sqlalchemy.exc

        failures.append(sqlalchemy.exc.SQLAlchemyError)
    try:
        yield
    except tuple(failures) as error:
        # Without the cause: its text and its traceback may hold the password.
        raise RegistryError(_explain(error, uri, doing)) from None


def _explain(error: Exception, uri: str, doing: str) -> str:
    lines = redact(str(error), uri).strip().splitlines() or [type(error).__name__]
    text, lowered = lines[0][:500], str(error).lower()
    shown = redact(uri, uri)
    if "locked" in lowered and sqlite_path(uri):
        remedy = "Another process holds the database: wait for it, or use an MLflow server for many writers."
    elif any(word in lowered for word in ("401", "403", "unauthorized", "forbidden", "permission_denied")):
        remedy = "Check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
    elif any(word in lowered for word in ("max retries", "connection", "timed out", "name resolution")):
        remedy = "Is the server running and reachable from here?"
    elif any(word in lowered for word in ("permission denied", "read-only", "readonly", "unable to open", "no space")):
        remedy = "Check that its folder exists, is writable and has space."
    elif "out of date" in lowered or "can't locate revision" in lowered or "upgrade" in lowered:
        remedy = "The database belongs to another MLflow version: run `mlflow db upgrade`, or use that version."
    else:
        remedy = "Check the registry's address and state."
    return f"Could not {doing} in the registry at {shown}: {text} {remedy}"
