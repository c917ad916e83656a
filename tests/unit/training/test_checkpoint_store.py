"""Where resumable checkpoints are kept."""

from pathlib import Path

import pytest
from filelock import FileLock

from stillhouse.errors import InputError
from stillhouse.training.checkpoints import open_store


def write_checkpoint(folder: Path, step: int, *, whole: bool = True) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"x" * step)
    if whole:
        (path / "trainer_state.json").write_text("{}")


def test_the_latest_is_the_newest_whole_one(tmp_path: Path):
    with open_store(str(tmp_path), "key") as store:
        assert store.latest() is None
        write_checkpoint(store.folder, 9)
        write_checkpoint(store.folder, 10)
        write_checkpoint(store.folder, 11, whole=False)  # cut off by a kill
        assert store.latest() == tmp_path / "key" / "checkpoint-10"
    with open_store(str(tmp_path), "other") as store:
        assert store.latest() is None


def test_a_training_that_still_runs_is_waited_for_and_then_refused(tmp_path: Path):
    (tmp_path / "key").mkdir()
    with (
        FileLock(tmp_path / "key" / "lock"),
        pytest.raises(InputError, match="another process"),
        open_store(str(tmp_path), "key", wait_s=0.2),
    ):
        pass
    with open_store(str(tmp_path), "key", wait_s=0.2):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="checkpoint_dir"), open_store(str(tmp_path / "file"), "key"):
        pass


def test_an_object_store_mirrors_whole_checkpoints_only():
    import fsspec

    uri = "memory://checkpoints"
    with open_store(uri, "key") as store:
        write_checkpoint(store.folder, 5)
        store.push()
        write_checkpoint(store.folder, 6)
        (store.folder / "checkpoint-5" / "model.safetensors").unlink()
        (store.folder / "checkpoint-5" / "trainer_state.json").unlink()
        (store.folder / "checkpoint-5").rmdir()
        store.push()
        local = store.folder
    assert not local.exists()
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/checkpoints/key/checkpoint-7/model.safetensors", b"cut off")
    with open_store(uri, "key") as store:
        latest = store.latest()
        assert latest is not None
        assert latest.name == "checkpoint-6"
        assert (latest / "model.safetensors").read_bytes() == b"x" * 6
        assert not (store.folder / "checkpoint-5").exists()
        store.clear()
    assert not filesystem.exists("/checkpoints/key")
