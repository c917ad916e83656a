"""Deploys a registered version to this machine's own Triton.

The order of things keeps the previous release safe: the new one is first tried beside it on spare ports, and takes its
place only when it gave every known answer; with no request lost where the running server keeps its ports. If it then
fails all the same, the previous one is put back in the same way. The alias `champion` moves last.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.shelf import clear_out, fetch_release, keep_texts, release_at_hand
from stillhouse.deploy.smoke import KnownAnswer, known_answers, smoke_test
from stillhouse.deploy.target import Endpoint, Registry, move_champion, record_service
from stillhouse.errors import InputError, Problem, ServingError, StillhouseError
from stillhouse.interrupts import terminable
from stillhouse.progress import Step
from stillhouse.serving.journal import read_releases, record_release
from stillhouse.serving.server import (
    ServerConfig,
    ServerStatus,
    read_status,
    read_wanted,
    serving_folder,
    start_server,
    stop_folder,
    switch_server,
)
from stillhouse.serving.triton import LOOPBACK, free_ports

__all__ = ["deploy_local", "serve_instead", "serving_lock", "stop_serving"]

_LOCK_SECONDS = 900.0
_TRIAL = "candidate"
"""Folder, in that of the public server, of the one on which a release is tried."""


def deploy_local(
    config: DeployConfig,
    *,
    registry: Registry,
    smoke_rows: Sequence[str | Mapping[str, Any]],
    step: Step | None = None,
    allowed: Callable[[], None] | None = None,
    how: str = "deploy",
) -> Endpoint:
    """Serve a registered version on this machine, and call it `champion`.

    Args:
        config: which version, and where.
        registry: where the version is.
        smoke_rows: texts of the test split that the server must answer just as the package does; or mappings with
            `text` and the `label` that the package gave when it was evaluated.
        step: told how far the work is.
        allowed: called right before the endpoint is taken over, and again before the alias is moved; raises where that
            must not be done any more.
        how: what the journal says of it: `deploy` or `rollback`.

    Raises:
        InputError: the deployment cannot be made here; nothing was changed.
        ServingError: the release did not start or answered wrongly. The previous release serves, and the alias is
            where it was.
    """
    problems = config.problems()
    if not config.version:
        problems.append(Problem("version", "no version is given.", "Register the model first."))
    if problems:
        raise InputError(problems)
    folder = serving_folder(config.home)
    # Told to end, it puts back what served before, and ends what it was trying.
    with terminable(), serving_lock(folder, wait_s=_LOCK_SECONDS):
        return _deploy_locked(
            config, registry, smoke_rows, folder, step or Step("deploy"), allowed or (lambda: None), how
        )


@contextmanager
def serving_lock(folder: Path, *, wait_s: float) -> Iterator[None]:
    """Be the only one that changes what is served in a folder.

    One lock for the folder, whatever the model: there is one public server to replace. Which of several runs may deploy
    a model at all is for the registry's lock, which other machines know of too.

    Raises:
        ServingError: another one still holds it after `wait_s` seconds.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "deploy.lock")
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        what = f"another deployment is under way, and holds {folder / 'deploy.lock'} for {wait_s:g} s."
        raise ServingError(what) from None
    try:
        yield
    finally:
        lock.release()


def stop_serving(folder: Path) -> ServerStatus | None:
    """Stop the public server, and what a killed deployment left of its trial. Returns what was served, or None."""
    if (folder / _TRIAL).is_dir():
        with suppress(ServingError), serving_lock(folder, wait_s=0):  # a deployment under way ends its own
            stop_folder(folder / _TRIAL)
    return stop_folder(folder)


def _deploy_locked(
    config: DeployConfig,
    registry: Registry,
    smoke_rows: Sequence[str | Mapping[str, Any]],
    folder: Path,
    step: Step,
    allowed: Callable[[], None],
    how: str,
) -> Endpoint:
    step.progress(0, 4, "fetch the release")
    shelf = folder / "repository" / config.model_name
    package = how == "rollback" and release_at_hand(folder, config.model_name, config.version)
    package = package or fetch_release(registry, config.model_name, config.version, shelf.parent)
    answers = known_answers(package, smoke_rows)
    public = ServerConfig(
        folder=folder, package=package, model=config.model_name, version=config.version, ports=config.ports
    )
    endpoint = Endpoint(
        model=config.model_name,
        version=config.version,
        grpc_url=f"{LOOPBACK}:{config.grpc_port}",
        http_url=f"http://{LOOPBACK}:{config.http_port}" if config.http_port else "",
        metrics_url=f"http://{LOOPBACK}:{config.metrics_port}/metrics" if config.metrics_port else "",
        answers=tuple(answers),
    )
    previous = read_status(folder)
    if previous and _serves(previous, public, answers):
        allowed()
        move_champion(registry, config.model_name, config.version)
        _record_service(registry, config, folder)
        if how == "rollback":
            record_release(public, how)
        return replace(endpoint, kept=True)

    step.progress(1, 4, "try it on spare ports")
    _try_beside(public, answers)
    step.progress(2, 4, "take over the endpoint")
    allowed()
    try:
        serve_instead(public)
        step.progress(3, 4, "smoke-test")
        _tested(public, answers)
        allowed()
        move_champion(registry, config.model_name, config.version)
    except BaseException as error:  # an interrupt too: an endpoint that served before shall serve after
        if previous and previous.status not in ("dead", "failed"):
            _bring_back(previous, folder, error)
        else:
            stop_folder(folder)
        raise
    _record_service(registry, config, folder)
    record_release(public, how)
    keep_texts(shelf, [answer.text for answer in answers])
    clear_out(folder, config.model_name, keep={str(package), previous.package if previous else ""})
    step.progress(4, 4, "")
    return endpoint


def serve_instead(config: ServerConfig) -> ServerStatus:
    """Serve a release in place of what its folder serves now, which is kept running where its ports stay.

    Raises:
        InputError: a port is taken, or the package's files are not those of its manifest.
        ServingError: it did not come up. What ran before still does, unless it was stopped for its ports.
    """
    running = read_status(config.folder)
    if running and running.status == "ready" and running.ports == config.ports:
        return switch_server(config)
    stop_folder(config.folder)
    return start_server(config)


def _serves(status: ServerStatus, wanted: ServerConfig, answers: Sequence[KnownAnswer]) -> bool:
    """Whether this very release runs on these very ports, and answers as it should."""
    runs = (status.package, status.model, status.version, status.ports)
    if status.status != "ready" or runs != (str(wanted.package), wanted.model, wanted.version, wanted.ports):
        return False
    try:
        smoke_test(status.grpc_url, status.model, status.version, answers)
    except ServingError:
        return False
    return True


def _try_beside(public: ServerConfig, answers: Sequence[KnownAnswer]) -> None:
    """Run the release on spare ports, beside whatever serves now, and test it there."""
    trial = replace(public, folder=public.folder / _TRIAL, ports=free_ports(), niceness=10)
    trial.folder.mkdir(parents=True, exist_ok=True)
    stop_folder(trial.folder)
    try:
        start_server(trial)
        _tested(trial, answers)
    finally:
        stop_folder(trial.folder)


def _tested(server: ServerConfig, answers: Sequence[KnownAnswer]) -> None:
    """The smoke test, whose failure also tells what the server itself said."""
    try:
        smoke_test(f"{LOOPBACK}:{server.ports.grpc}", server.model, server.version, answers)
    except ServingError as error:
        status = read_status(server.folder)
        raise ServingError(str(error), status.log_tail() if status else ()) from None


def _bring_back(previous: ServerStatus, folder: Path, error: BaseException) -> None:
    """Have the previous release serve again on its ports; nothing is done where it still does."""
    now, wanted = read_status(folder), read_wanted(folder)
    changing = now is not None and wanted is not None and wanted[0] != now.request  # interrupted half-way
    if now and not changing and (now.status, now.package, now.ports) == ("ready", previous.package, previous.ports):
        return
    config = ServerConfig(
        folder=folder,
        package=Path(previous.package),
        model=previous.model,
        version=previous.version,
        ports=previous.ports,
    )
    try:
        serve_instead(config)
    except StillhouseError as second:
        what = f"{error}\nand the previous release, {previous.model} version {previous.version}, did not come back:"
        raise ServingError(f"{what} {second}") from error


def _record_service(registry: Registry, config: DeployConfig, folder: Path) -> None:
    """Have the registry's record say what is in production here."""
    # Another model that was deployed here has given way, and may have been stopped before.
    deployed = [entry.model for entry in read_releases(folder) if entry.how != "serve"]
    gone = {*deployed[-1:]} - {config.model_name}
    record_service(registry, config.model_name, config.version, where=f"local {socket.gethostname()}", gone=gone)
