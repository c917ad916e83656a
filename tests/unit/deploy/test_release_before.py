"""Which release a rollback goes to, by the journal alone; tests/serving has the rollback itself."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from stillhouse.deploy import rollback
from stillhouse.deploy.target import Endpoint
from stillhouse.errors import InputError
from stillhouse.serving.journal import record_release
from stillhouse.serving.server import ServerConfig, ServerStatus, serving_folder
from stillhouse.serving.triton import Ports


class Registry:
    """All that choosing needs of a registry."""

    def __init__(self, champion: str) -> None:
        self.champion = champion

    def resolve(self, uri: str) -> tuple[str, str]:
        name, version = uri.removeprefix("models:/").split("/")
        return name, version

    def get_alias(self, name: str, alias: str) -> str:
        return self.champion

    def deploy_lock(self, name, *, holder, wait_s, step):
        return nullcontext(SimpleNamespace(check=lambda: None))


@pytest.fixture
def roll_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`roll_back(champion, served, live)`: from what to what, with releases as `how version` and a live package."""
    deployed: list[str] = []

    def deploy(config, **_):
        deployed.append(config.version)
        return Endpoint(model="reviews", version=config.version, grpc_url="", http_url="", metrics_url="", answers=())

    monkeypatch.setattr(rollback, "deploy_local", deploy)

    def run(champion: str, served: list[str], live: str = "", to: str = "") -> tuple[str, str]:
        for line in served:
            how, version = line.split()
            package = tmp_path / line
            config = ServerConfig(folder=serving_folder(tmp_path), package=package, model="reviews",
                                  version=version.removeprefix("folder-"))  # fmt: skip
            record_release(config, how, registered=not version.startswith("folder-"))
        status = None
        if live:
            status = ServerStatus(status="ready", model="reviews", version=live.split()[1].removeprefix("folder-"),
                                  package=str(tmp_path / live), ports=Ports(), pid=1, pid_ticks=1)  # fmt: skip
        monkeypatch.setattr(rollback, "server_status", lambda home: status)
        before, _ = rollback.roll_back(tmp_path, registry=Registry(champion), tracking_uri="", to=to)
        return before, deployed[-1]

    return run


def test_what_was_tried_by_hand_after_the_champion_is_not_before_it(roll_back):
    assert roll_back("2", ["deploy 1", "deploy 2", "serve 3"]) == ("2", "1")


def test_from_what_was_tried_by_hand_back_to_the_one_before(roll_back):
    assert roll_back("2", ["deploy 1", "deploy 2", "serve 3"], live="serve 3") == ("3", "2")


def test_from_a_package_folder_back_to_what_was_released_last(roll_back):
    """Its number, 1, is no registered version's."""
    assert roll_back("1", ["deploy 1", "serve folder-1"], live="serve folder-1") == ("", "1")
    assert roll_back("1", ["serve folder-1"], live="serve folder-1", to="1") == ("", "1")


def test_there_is_nothing_before_the_first(roll_back):
    with pytest.raises(InputError, match="only version 1 of reviews was deployed here"):
        roll_back("1", ["deploy 1", "serve 2"])
