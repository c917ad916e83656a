"""Where resumable checkpoints are kept."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from stillhouse.errors import InputError
from stillhouse.training.checkpoints import CheckpointStore, open_store


def write_checkpoint(store: CheckpointStore, step: int, *, whole: bool = True) -> None:
    path = store.folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"x" * step)
    (path / "trainer_state.json").write_text("{}")
    if whole:
        store.seal(step)


def test_the_latest_is_the_newest_whole_one(tmp_path: Path):
    with open_store(str(tmp_path), "key") as store:
        assert store.latest() is None
        write_checkpoint(store, 9)
        write_checkpoint(store, 10)
        write_checkpoint(store, 11, whole=False)  # killed while another process wrote its part
        assert store.latest() == tmp_path / "key" / "checkpoint-10"
    with open_store(str(tmp_path), "other") as store:
        assert store.latest() is None


@pytest.mark.parametrize("lost", ["model.safetensors", "trainer_state.json", "whole"])
def test_one_whose_deletion_was_cut_off_is_not_resumed(tmp_path: Path, lost: str):
    """A trainer deletes its older checkpoints, in any order, before it has sealed the new one."""
    with open_store(str(tmp_path), "key") as store:
        write_checkpoint(store, 9)
        write_checkpoint(store, 10)
        (store.folder / "checkpoint-10" / lost).unlink()
        assert store.latest() == store.folder / "checkpoint-9"
        write_checkpoint(store, 11)
        (store.folder / "checkpoint-11" / "model.safetensors").write_bytes(b"cut off")
        assert store.latest() == store.folder / "checkpoint-9"


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


@pytest.mark.parametrize("root", ["{folder}", "file://{folder}", "memory://finished-trainings"])
def test_what_may_not_be_handed_over_yet_is_kept_for_a_day(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fsspec

    root = root.format(folder=tmp_path)
    filesystem, path = fsspec.core.url_to_fs(root)
    (tmp_path / "checkpoint-1").mkdir()  # of nobody's
    monkeypatch.chdir(tmp_path)

    def kept() -> list[str]:
        return sorted(str(found).rpartition("/")[2] for found in filesystem.glob(f"{path}/teacher-1/checkpoint-*"))

    def train(key: str, *, handed_over: bool = False) -> Path | None:
        with open_store(root, key) as store:
            assert not filesystem.exists(f"{path}/finished/{key}")  # it has begun
            found = store.latest()
            if found is None:
                write_checkpoint(store, 5)
                store.push()
            store.finish(handed_over=handed_over)
            return found

    assert train("teacher-1") is None
    assert train("teacher-1").name == "checkpoint-5"  # another attempt has nothing to train
    train("student-1")
    assert kept() == ["checkpoint-5"]
    for name in filesystem.ls(f"{path}/finished", detail=False):
        filesystem.pipe_file(name, b"0.0")  # long ago
    if root.startswith("memory"):
        train("student-1")
    else:
        with FileLock(tmp_path / "teacher-1" / "lock"):  # another attempt has begun
            train("student-1")
        assert kept() == ["checkpoint-5"]
        train("student-1")
    assert kept() == []
    assert [str(name).rpartition("/")[2] for name in filesystem.ls(f"{path}/finished", detail=False)] == ["student-1"]
    train("albert-1", handed_over=True)
    assert not filesystem.glob(f"{path}/albert-1/checkpoint-*")
    assert (tmp_path / "checkpoint-1").is_dir()
    assert not (tmp_path / "file:").exists()


def test_an_object_store_mirrors_whole_checkpoints_only():
    import fsspec

    uri = "memory://checkpoints"
    with open_store(uri, "key") as store:
        write_checkpoint(store, 5)
        store.push()
        write_checkpoint(store, 6)
        shutil.rmtree(store.folder / "checkpoint-5")
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
