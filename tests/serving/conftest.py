from __future__ import annotations

from pathlib import Path

import pytest
from leftovers import remains
from tiny_package import build_package

from stillhouse.serving.repository import set_model_version
from stillhouse.serving.server import ServerConfig, read_status, start_server, stop_folder
from stillhouse.serving.triton import free_ports, platform_problems


def pytest_collection_modifyitems(items):
    here = str(Path(__file__).parent)
    problems = platform_problems()
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.slow)
            if problems:
                item.add_marker(pytest.mark.skip(reason=problems[0].what))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package fetched as version 7."""
    folder = build_package(tmp_path_factory.mktemp("package") / "package")
    set_model_version(folder / "triton", "reviews", "7")
    return folder


@pytest.fixture(scope="module")
def server(package, tmp_path_factory):
    """A server for all tests of a module that leave it as it is."""
    folder = tmp_path_factory.mktemp("server")
    config = ServerConfig(folder=folder, package=package, model="reviews", version="7", ports=free_ports())
    yield start_server(config)
    stop_folder(folder)
    assert remains(folder) == []


@pytest.fixture
def own_server(package, tmp_path):
    """Configuration of a server that the test starts itself; it is stopped in the end."""
    folder = tmp_path / "server"
    folder.mkdir()
    yield ServerConfig(
        folder=folder, package=package, model="reviews", version="7", ports=free_ports(), probe_interval=0.3
    )
    stop_folder(folder)
    assert read_status(folder) is None
    assert remains(folder) == []
