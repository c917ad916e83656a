"""Resumable checkpoints that outlive a run's own folders.

The output folder of a step is new for each run and each pod, so checkpoints live elsewhere: under `checkpoint_dir`, in
a folder keyed by a digest of everything that determines the training. A path is locked while a training uses it, since
a killed parent can leave a training child alive; for an object store, checkpoints are copied up after each save, and
those that are whole are copied down at the start.

Of several processes that train together, the first of all holds the lock and copies up, and the first of each node
copies down. A path must then be on a volume that all nodes mount; of an object store each node has a copy of its own.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from stillhouse.errors import InputError, Problem
from stillhouse.training import ranks

__all__ = ["CheckpointStore", "open_store"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint-(\d+)$")
_WHOLE = "trainer_state.json"
"""The file that the trainer writes last: a checkpoint without it was cut off."""


class CheckpointStore:
    """A training's own folder of checkpoints.

    Args:
        folder: local, or on a volume.
        remote: the URI that mirrors it, if any.
        per_node: whether each node has a folder of its own; else all see the same.
    """

    def __init__(self, folder: Path, remote: str = "", *, per_node: bool = False) -> None:
        self.folder = folder
        self.remote = remote
        self.per_node = per_node

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        found = [
            (int(match[1]), path)
            for path in self.folder.glob("checkpoint-*")
            if (match := _NAME.search(path.name)) and (path / _WHOLE).is_file()
        ]
        return max(found)[1] if found else None

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

    def clear(self) -> None:
        """Delete the checkpoints, once the training's output is complete."""
        for path in self.folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
        if self.remote:
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(self.remote)
            if filesystem.exists(root):
                filesystem.rm(root, recursive=True)


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
    if not checkpoint_dir or "://" in checkpoint_dir:
        with ranks.scratch("stillhouse-checkpoints-") as folder:
            remote = f"{checkpoint_dir.rstrip('/')}/{key}" if checkpoint_dir else ""
            store = CheckpointStore(folder, remote, per_node=True)
            if ranks.is_node_main():
                store.pull()
            ranks.barrier()
            yield store
        return
    folder = Path(checkpoint_dir).expanduser() / key
    with _held(folder, checkpoint_dir, wait_s) if ranks.is_main() else nullcontext():
        ranks.barrier()
        yield CheckpointStore(folder)


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
