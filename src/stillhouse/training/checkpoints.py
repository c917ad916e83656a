"""Resumable checkpoints that outlive a run's own folders.

The output folder of a step is new for each run and each pod, so checkpoints live elsewhere: under `checkpoint_dir`, in
a folder keyed by a digest of everything that determines the training. A path is locked while a training uses it, since
a killed parent can leave a training child alive; for an object store, checkpoints are copied up after each save, and
those that are whole are copied down at the start.

Of several processes that train together, the first of all holds the lock and copies up, and the first of each node
copies down. A path must then be on a volume that all nodes mount; of an object store each node has a copy of its own.
An object store is not locked: two runs that train the very same thing at once overwrite each other's checkpoints.

A training that has ended may not have handed its model over yet: a step's artifact is uploaded after the step, and that
may fail. Its checkpoints are kept then, so that another attempt has nothing to train, and a mark in `finished/` says
so; any training under the same `checkpoint_dir` removes what was marked a day ago.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from stillhouse.errors import InputError, Problem
from stillhouse.training import ranks
from stillhouse.training.scale import local_path

__all__ = ["CheckpointStore", "open_store"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint-(\d+)$")
_KEY = re.compile(r"[\w-]+")
_MARKS = "finished"
_KEPT_S = 24 * 3600.0
_WHOLE = "whole"
"""The file made last, which names the others and their sizes: where it or one of them is missing, a checkpoint was cut
off while it was written or deleted. The trainer's last file will not do, since the trainer does not wait for the other
processes to write their parts, and that file itself may be cut off."""


class CheckpointStore:
    """A training's own folder of checkpoints.

    Args:
        folder: local, or on a volume.
        remote: the URI that mirrors it, if any.
        per_node: whether each node has a folder of its own; else all see the same.
        mark: where the end of the training is noted; empty where nothing outlives it.
    """

    def __init__(self, folder: Path, remote: str = "", *, per_node: bool = False, mark: str = "") -> None:
        self.folder = folder
        self.remote = remote
        self.per_node = per_node
        self._mark = mark

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        found = [
            (int(match[1]), path)
            for path in self.folder.glob("checkpoint-*")
            if (match := _NAME.search(path.name)) and _is_whole(path)
        ]
        return max(found)[1] if found else None

    def seal(self, step: int) -> None:
        """Mark the checkpoint of that step as whole, once all processes have written their parts of it."""
        folder = self.folder / f"checkpoint-{step}"
        # One that was itself cut off may have left its partial file.
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(_WHOLE)]
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        partial = folder / f"{_WHOLE}.partial"
        partial.write_text(json.dumps(sizes), encoding="utf-8")
        os.replace(partial, folder / _WHOLE)

    def push_random_states(self) -> None:
        """Copy what only this node has of the newest checkpoint, before the whole is pushed: its generators' states."""
        newest = self.latest()
        if not self.remote or newest is None:
            return
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.remote)
        for file in newest.glob("rng_state_*"):
            filesystem.put_file(str(file), f"{root}/{newest.name}/{file.name}")

    def push(self) -> None:
        """Copy the checkpoints to the remote and drop what is no longer kept locally; nothing to do for a path."""
        if not self.remote:
            return
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.remote)
        kept = {path.name for path in self.folder.glob("checkpoint-*")}
        for name in sorted(kept):
            if not filesystem.exists(f"{root}/{name}/{_WHOLE}"):
                files = [p for p in (self.folder / name).rglob("*") if p.is_file()]
                # The file that marks a checkpoint as whole goes last, so that a copy cut short is never resumed.
                for file in sorted(files, key=lambda p: p.name == _WHOLE):
                    filesystem.put_file(str(file), f"{root}/{name}/{file.relative_to(self.folder / name).as_posix()}")
        for entry in filesystem.ls(root, detail=False):
            name = str(entry).rstrip("/").rsplit("/", 1)[-1]
            if _NAME.search(name) and name not in kept:
                filesystem.rm(entry, recursive=True)

    def pull(self) -> None:
        """Copy the remote's whole checkpoints down; nothing to do for a path."""
        if not self.remote:
            return
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.remote)
        if not filesystem.exists(root):
            filesystem.makedirs(root, exist_ok=True)
            return
        for entry in filesystem.ls(root, detail=False):
            name = str(entry).rstrip("/").rsplit("/", 1)[-1]
            if _NAME.search(name) and filesystem.exists(f"{root}/{name}/{_WHOLE}"):
                filesystem.get(f"{root}/{name}/", f"{self.folder / name}/", recursive=True)

    def finish(self, *, handed_over: bool) -> None:
        """Say that the training's output is complete: the checkpoints are deleted, or marked to be deleted in a day.

        Nothing that goes wrong here matters to the training, so it is logged and no more.

        Args:
            handed_over: whether the output lies where it is read from.
        """
        try:
            if handed_over or not self._mark:
                self.clear()
            else:
                _write(self._mark, str(time.time()))
        except Exception as error:  # of any object store
            _log.warning("the checkpoints of a finished training could not be put in order: %s", error)

    def clear(self) -> None:
        """Delete the checkpoints."""
        for path in self.folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
        if self.remote:
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(self.remote)
            if filesystem.exists(root):
                filesystem.rm(root, recursive=True)


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _WHOLE).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


@contextmanager
def open_store(checkpoint_dir: str, key: str, wait_s: float = 600.0) -> Iterator[CheckpointStore]:
    """The store of the training with that key, held exclusively while the context is open.

    Args:
        checkpoint_dir: a path, an fsspec URI, or empty for a temporary folder that is deleted at the end.
        key: digest of everything that determines the training.
        wait_s: seconds to wait for another process that holds the same training.

    Raises:
        InputError: the folder cannot be written, or another process still holds it after `wait_s`.
    """
    path = local_path(checkpoint_dir)
    root = checkpoint_dir.rstrip("/") if path is None else path.as_posix()
    mark = f"{root}/{_MARKS}/{key}" if checkpoint_dir else ""
    if not checkpoint_dir or path is None:
        with ranks.scratch("stillhouse-checkpoints-") as folder:
            remote = f"{root}/{key}" if checkpoint_dir else ""
            store = CheckpointStore(folder, remote, per_node=True, mark=mark)
            if remote and ranks.is_main():
                _remove_finished(root, key)
            if ranks.is_node_main():
                store.pull()
            ranks.barrier()
            yield store
        return
    folder = path / key
    with _held(folder, checkpoint_dir, wait_s) if ranks.is_main() else nullcontext():
        if ranks.is_main():
            _remove_finished(root, key)
        ranks.barrier()
        yield CheckpointStore(folder, mark=mark)


def _write(uri: str, text: str) -> None:
    import fsspec

    if (path := local_path(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    filesystem, name = fsspec.core.url_to_fs(uri)
    filesystem.pipe_file(name, text.encode())


def _remove_finished(root: str, key: str) -> None:
    """Delete what trainings left that ended long enough ago. That of `key` begins now, so it has not ended."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(root)
        filesystem.invalidate_cache()
        marks = filesystem.ls(f"{path}/{_MARKS}", detail=False) if filesystem.exists(f"{path}/{_MARKS}") else []
    except Exception as error:  # of any object store; what there is to be said of it, the training will say
        _log.warning("the marks of finished trainings in %s cannot be read: %s", root, error)
        return
    for mark in marks:
        name = str(mark).rpartition("/")[2]
        try:
            if name == key:
                filesystem.rm(mark)
            elif _KEY.fullmatch(name) and time.time() - float(filesystem.cat_file(mark)) > _KEPT_S:
                if (folder := local_path(root)) is not None:
                    _remove_from_volume(folder / name)
                elif filesystem.exists(f"{path}/{name}"):
                    filesystem.rm(f"{path}/{name}", recursive=True)
                filesystem.rm(mark)
        except Exception as error:  # or another training did the same; the next one comes here too
            _log.warning("the checkpoints of %s, which has finished, were not removed: %s", name, error)


def _remove_from_volume(folder: Path) -> None:
    from filelock import FileLock

    if folder.is_dir():
        with FileLock(folder / "lock", timeout=0):  # a training that holds it has not ended
            CheckpointStore(folder).clear()


@contextmanager
def _held(folder: Path, checkpoint_dir: str, wait_s: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            Problem(
                "checkpoint_dir", f"{checkpoint_dir!r} cannot be written ({error.strerror}).", "Name another folder."
            )
        ) from None
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("another process trains into %s; waiting for it to end", folder)
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            raise InputError(
                Problem("checkpoint_dir", f"another process still trains into {folder}.", "End it, then try again.")
            ) from None
    try:
        yield
    finally:
        lock.release()
