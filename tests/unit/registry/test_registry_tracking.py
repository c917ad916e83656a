from __future__ import annotations

import os
from pathlib import Path

import pytest

from stillhouse.errors import InputError, RegistryError
from stillhouse.registry import MlflowRegistry, RegisterConfig
from stillhouse.registry.tracking import absolute_uri, as_default, redact, sqlite_path, uri_problems


def test_sqlite_paths() -> None:
    assert sqlite_path("sqlite:///state/mlflow.db") == Path("state/mlflow.db")
    assert sqlite_path("sqlite:////state/my%20files/mlflow.db?timeout=5") == Path("/state/my files/mlflow.db")
    assert sqlite_path("http://server:5000") is None
    assert sqlite_path("postgresql://sqlite/db") is None


def test_relative_database_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///state/mlflow.db?timeout=5") == f"sqlite:///{tmp_path}/state/mlflow.db?timeout=5"
    assert absolute_uri("https://server/x") == "https://server/x"


@pytest.mark.parametrize("uri", ["", "mlruns", "file:///tmp/mlruns", "sqlite://", "ftp://server/x", "http://"])
def test_other_addresses_are_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert uri_problems(uri)
    with pytest.raises(InputError, match="tracking_uri"):
        MlflowRegistry(uri)


def test_passwords_are_not_shown() -> None:
    uri = "https://ada:p%40ss@server:5000/x"
    text = redact(f"failed for {uri}: p@ss and p%40ss are wrong, see http://bob:other@host/", uri)
    assert "p@ss" not in text and "p%40ss" not in text and "other" not in text and "ada" not in text
    assert "https://server:5000/x" in text
    assert "p%40ss" not in repr(MlflowRegistry(uri))


def test_dead_server_is_reported_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError) as caught:
        MlflowRegistry("http://ada:s3cret@127.0.0.1:9").initialise()
    message = str(caught.value)
    assert "s3cret" not in message and "http://127.0.0.1:9" in message
    assert "Is the server running" in message
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RegistryError, match=r"Could not open the database.*file"):
        MlflowRegistry(f"sqlite:///{tmp_path}/file/mlflow.db").initialise()


def test_all_problems_of_the_configuration_at_once() -> None:
    config = RegisterConfig(model_name="a/b", tracking_uri="mlruns", experiment=" ")
    assert [problem.where for problem in config.problems()] == ["model_name", "tracking_uri", "experiment"]


def test_reading_makes_no_database(tmp_path: Path) -> None:
    registry = MlflowRegistry(f"sqlite:///{tmp_path}/state/mlflow.db")
    assert registry.models() == []
    assert registry.get_alias("reviews", "champion") is None
    with pytest.raises(RegistryError, match=r"no model registry.*Run the pipeline first"):
        registry.resolve("models:/reviews@champion")
    assert not (tmp_path / "state").exists()


def test_an_empty_address_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@server:5000")
    assert uri_problems("") == []
    assert MlflowRegistry("").uri == "http://user:hunter2@server:5000"
    assert "hunter2" not in repr(MlflowRegistry(""))


def test_a_password_may_not_be_a_parameter() -> None:
    (problem,) = uri_problems("http://user:hunter2@server:5000")
    assert "hunter2" not in str(problem)
    assert "MLFLOW_TRACKING_URI" in problem.remedy


@pytest.mark.parametrize("own", [None, "sqlite:///own.db"])
def test_mlflows_own_addresses_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    variables = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    for name in variables:
        if own:
            monkeypatch.setenv(name, own)
        else:
            monkeypatch.delenv(name, raising=False)
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    other = f"sqlite:///{tmp_path}/mlflow.db"
    with as_default(other):
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (other, other)
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before
    assert [os.environ.get(name) for name in variables] == [own, own]
