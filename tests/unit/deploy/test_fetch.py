"""A pinned package from a folder or an object store to the folder that Triton serves."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import object_stores
import pytest
from tiny_package import build_package

from stillhouse.artifacts import PackageManifest, sha256_file
from stillhouse.deploy.fetch import FetchConfig, fetch_pinned
from stillhouse.errors import InputError, RegistryError, StillhouseError
from stillhouse.serving.verify import verify_release

MODEL = "triton/reviews-encoder/1/model.onnx"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_package(tmp_path_factory.mktemp("built") / "package")


@pytest.fixture
def package(built: Path, tmp_path: Path) -> Path:
    """A package that the test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "package"))


def config(source: object, folder: Path, built: Path, **changes: Any) -> FetchConfig:
    values = {"source": str(source), "folder": folder, "model": "reviews", "version": "7"}
    return FetchConfig(**{**values, "manifest_sha256": sha256_file(built / "package.json"), **changes})


def refused(wanted: FetchConfig, error: type[StillhouseError] = InputError) -> str:
    """What is said of a release that is not fetched, of which nothing is left."""
    with pytest.raises(error) as caught:
        fetch_pinned(wanted)
    assert not list(wanted.folder.glob("*"))
    return str(caught.value)


def test_laid_out_as_its_version(package: Path, tmp_path: Path):
    lines: list[str] = []
    repository = fetch_pinned(config(package, tmp_path / "models", package), lines.append)
    assert repository == tmp_path / "models/triton"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["package.json", "triton"]
    assert (repository / "reviews/7/model.py").is_file()
    assert (repository / "reviews-encoder/7/model.onnx").is_file()
    assert not list(repository.rglob("1"))
    verify_release(tmp_path / "models", PackageManifest.load(package), "7")
    assert any("is the pinned one" in line for line in lines)
    assert (repository / "reviews/7/model.py").stat().st_mode & 0o777 == 0o644


def test_again_nothing_is_fetched(package: Path, tmp_path: Path):
    wanted = config(package, tmp_path / "models", package)
    file = fetch_pinned(wanted) / "reviews/7/model.py"
    inode = file.stat().st_ino
    shutil.rmtree(package)
    fetch_pinned(dataclasses.replace(wanted))
    assert file.stat().st_ino == inode


def test_what_was_altered_since_is_fetched_again(package: Path, tmp_path: Path):
    wanted = config(package, tmp_path / "models", package)
    file = fetch_pinned(wanted) / "reviews/7/model.py"
    file.write_text("raise SystemExit")
    lines: list[str] = []
    fetch_pinned(wanted, lines.append)
    verify_release(tmp_path / "models", PackageManifest.load(package), "7")
    assert any("model.py was altered" in line for line in lines)


@pytest.mark.parametrize("left", ["half a download", "all but the manifest", "all but the cleaning up"])
def test_what_a_killed_attempt_left_is_cleared(package: Path, tmp_path: Path, left: str):
    folder = tmp_path / "models"
    (folder / ".fetching/triton/reviews").mkdir(parents=True)
    (folder / ".fetching/package.json").write_bytes((package / "package.json").read_bytes())
    (folder / "lost+found").mkdir()
    if left == "all but the manifest":
        (folder / ".fetching/triton").rename(folder / "triton")
    if left == "all but the cleaning up":
        shutil.rmtree(folder)
        fetch_pinned(config(package, folder, package))
        (folder / ".fetching").mkdir()
        shutil.rmtree(package)
    fetch_pinned(config(package, folder, folder if left == "all but the cleaning up" else package))
    assert {path.name for path in folder.iterdir()} - {"lost+found"} == {"package.json", "triton"}
    verify_release(folder, PackageManifest.load(folder), "7")


def test_a_folder_that_holds_something_else_is_left_alone(package: Path, tmp_path: Path):
    for name in ("triton/other/1/model.py", "notes.txt"):
        file = tmp_path / name.split("/")[0] / name
        file.parent.mkdir(parents=True)
        file.touch()
        with pytest.raises(InputError, match=f"not empty: it holds {name.split('/')[0]}"):
            fetch_pinned(config(package, tmp_path / name.split("/")[0], package))
        assert file.exists()
    other = build_package(tmp_path / "other", seed=1)
    fetch_pinned(config(other, tmp_path / "models", other))
    with pytest.raises(InputError, match="holds another package already"):
        fetch_pinned(config(package, tmp_path / "models", package))
    verify_release(tmp_path / "models", PackageManifest.load(other), "7")


def test_every_faulty_file_is_named_at_once(package: Path, tmp_path: Path):
    pinned = sha256_file(package / "package.json")
    (package / MODEL).write_bytes(b"another model")
    (package / "triton/reviews/1/tokenizer.json").unlink()
    (package / "triton/reviews/1/sitecustomize.py").write_text("import os")
    (package / "triton/extra").mkdir()
    (package / "triton/extra/config.pbtxt").touch()
    with pytest.raises(InputError) as caught:
        fetch_pinned(config(package, tmp_path / "models", package, manifest_sha256=pinned))
    said = {problem.where.removeprefix(f"{package}/"): problem.what for problem in caught.value.problems}
    assert list(said) == [
        MODEL, "triton/reviews/1/tokenizer.json", "triton/extra/config.pbtxt", "triton/reviews/1/sitecustomize.py"
    ]  # fmt: skip
    assert said[MODEL].startswith("was altered")
    assert said["triton/reviews/1/tokenizer.json"] == "is missing."
    assert said["triton/extra/config.pbtxt"] == "is not in the manifest."
    assert not list((tmp_path / "models").iterdir())


def test_a_manifest_made_to_fit_altered_files_is_not_the_pinned_one(package: Path, built: Path, tmp_path: Path):
    (package / MODEL).write_bytes(b"another model")
    PackageManifest.load(package).save(package)
    said = refused(config(package, tmp_path / "models", built))
    assert f"{package}/package.json: has sha256 {sha256_file(package / 'package.json')}" in said
    assert "model.onnx" not in said  # nothing of it is believed


def rewritten(package: Path, **changes: Any) -> None:
    path = package / "package.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "stillhouse/package/v99"}, "has format 'stillhouse/package/v99'; this release"),
        ({"served_name": "verdicts"}, "serves under the name 'verdicts'"),
        ({"files": {"../../etc/passwd": "0" * 64}}, "names files outside triton/: ../../etc/passwd"),
        ({"files": {"triton/../../x": "0" * 64, "/x": "1" * 64}}, "outside triton/: triton/../../x, /x"),
    ],
)
def test_manifests_that_are_pinned_and_still_will_not_do(package: Path, tmp_path: Path, changes: Any, says: str):
    rewritten(package, **changes)
    assert says in refused(config(package, tmp_path / "models", package))


def test_a_source_that_holds_no_package(package: Path, built: Path, tmp_path: Path):
    assert "package.json: is missing, as is anything else." in refused(config("/nowhere", tmp_path / "models", built))
    both = tmp_path / "both"
    shutil.copytree(package, both / "int8")
    said = refused(config(both, tmp_path / "models", built))
    assert "is missing; there is int8/package.json" in said


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"model": "a b"}, "--model"),
        ({"version": ""}, "--version"),
        ({"version": "07"}, "--version"),
        ({"manifest_sha256": "ABC"}, "--manifest-sha256"),
        ({"source": "models:/reviews@champion"}, "SOURCE"),
        ({"source": "models:/reviews/8"}, "SOURCE"),
        ({"source": "models:/others/7"}, "SOURCE"),
        ({"source": "package"}, "SOURCE"),
        ({"source": "ftp://host/package"}, "SOURCE"),
        ({"source": "s3://"}, "SOURCE"),
        ({"source": "s3://KEY:hunter2@bucket/package"}, "SOURCE"),
    ],
)
def test_values_that_will_not_do(built: Path, tmp_path: Path, change: dict[str, Any], where: str):
    (problem,) = dataclasses.replace(config(built, tmp_path, built), **change).problems()
    assert problem.where == where
    assert "hunter2" not in str(problem)


def test_all_values_at_once(built: Path, tmp_path: Path):
    wanted = config("nowhere", tmp_path / "models", built, model="", version="x", manifest_sha256="")
    said = refused(wanted)
    assert all(where in said for where in ("SOURCE", "--model", "--version", "--manifest-sha256"))
    assert not wanted.folder.exists()


# -- the command -------------------------------------------------------------------------------------------------------


def command(wanted: FetchConfig, *, before: str = "") -> list[str]:
    """The command line, in a process that runs some code first."""
    code = f"import sys\n{before}\nfrom stillhouse.cli.main import main\nmain()"
    options = ["--model", wanted.model, "--version", wanted.version, "--manifest-sha256", wanted.manifest_sha256]
    return [sys.executable, "-c", code, "fetch", wanted.source, str(wanted.folder), *options]


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(package: Path, tmp_path: Path):
    with (package / MODEL).open("r+b") as file:
        file.truncate(400 << 20)  # long enough under way, and sparse
    rewritten(package, files={**PackageManifest.load(package).files, MODEL: sha256_file(package / MODEL)})
    wanted = config(package, tmp_path / "models", package)
    half = wanted.folder / ".fetching" / MODEL
    process = subprocess.Popen(command(wanted), stderr=subprocess.DEVNULL)
    try:
        while not (half.exists() and half.stat().st_size):
            assert process.poll() is None
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert half.stat().st_size < 400 << 20
    assert [path.name for path in wanted.folder.iterdir()] == [".fetching"]
    fetch_pinned(wanted)
    assert sorted(path.name for path in wanted.folder.iterdir()) == ["package.json", "triton"]
    verify_release(wanted.folder, PackageManifest.load(package), "7")


def test_it_says_what_is_wrong_and_exits_with_2(package: Path, tmp_path: Path):
    wanted = config(package, tmp_path / "models", package)
    (package / MODEL).write_bytes(b"another model")
    done = subprocess.run(command(wanted), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{package}/{MODEL}: was altered" in done.stderr
    assert f"fetching reviews version 7 from {package}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_client_library_that_is_absent_is_named(built: Path, tmp_path: Path):
    wanted = config("az://models/reviews", tmp_path / "models", built)
    done = subprocess.run(command(wanted, before="sys.modules['adlfs'] = None"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "az needs 'adlfs', which is absent" in done.stderr


# -- object stores -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(built: Path) -> Iterator[Any]:
    with object_stores.s3("models") as store:
        store.put(f"{built}/", "models/reviews/int8/", recursive=True)
        yield store


def test_from_s3(bucket: Any, built: Path, tmp_path: Path):
    fetch_pinned(config("s3://models/reviews/int8/", tmp_path / "models", built))
    verify_release(tmp_path / "models", PackageManifest.load(built), "7")


def test_faulty_files_in_s3(bucket: Any, built: Path, tmp_path: Path):
    bucket.copy("models/reviews/int8/", "models/spoiled/", recursive=True)
    bucket.pipe_file(f"models/spoiled/{MODEL}", b"another model")
    bucket.pipe_file("models/spoiled/triton/more", b"")
    bucket.pipe_file("models/spoiled/triton/", b"")  # as some tools mark a folder
    bucket.rm_file("models/spoiled/triton/reviews/config.pbtxt")
    said = refused(config("s3://models/spoiled", tmp_path / "models", built))
    assert said.count("\n") == 2
    for name in (f"{MODEL}: was altered", "triton/reviews/config.pbtxt: is missing", "triton/more: is not in"):
        assert f"s3://models/spoiled/{name}" in said


def test_s3_that_holds_nothing_or_cannot_be_reached(
    bucket: Any, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for source in ("s3://models/none", "s3://no-such-bucket/package"):
        assert "package.json: is missing, as is" in refused(config(source, tmp_path / "models", built))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    type(bucket).clear_instance_cache()
    said = refused(config("s3://models/reviews/int8", tmp_path / "models", built), RegistryError)
    assert "Could not fetch the package from s3://models/reviews/int8" in said
    assert "hunter2" not in said


def test_from_google(built: Path, tmp_path: Path):
    with object_stores.gcs("models") as store:
        for path in built.rglob("*"):
            if path.is_file():
                store.pipe_file(f"models/reviews/{path.relative_to(built)}", path.read_bytes())
        fetch_pinned(config("gs://models/reviews", tmp_path / "models", built))
        verify_release(tmp_path / "models", PackageManifest.load(built), "7")
        store.pipe_file(f"models/reviews/{MODEL}", b"another model")
        said = refused(config("gs://models/reviews", tmp_path / "spoiled", built))
        assert f"gs://models/reviews/{MODEL}: was altered" in said
        assert "is missing, as is" in refused(config("gs://models/none", tmp_path / "none", built))


@pytest.mark.slow
def test_from_azure(built: Path, tmp_path: Path):
    (tmp_path / "azurite").mkdir()
    with object_stores.azure("models", tmp_path / "azurite") as store:
        store.put(f"{built}/", "models/reviews/", recursive=True)
        fetch_pinned(config("az://models/reviews", tmp_path / "models", built))
        verify_release(tmp_path / "models", PackageManifest.load(built), "7")
        store.pipe_file(f"models/reviews/{MODEL}", b"another model", overwrite=True)
        for source in ("az://models/reviews", f"abfs://models@{object_stores.ACCOUNT}.dfs.core.windows.net/reviews"):
            said = refused(config(source, tmp_path / "spoiled", built))
            assert f"{source}/{MODEL}: was altered" in said
        assert "is missing, as is" in refused(config("az://models/none", tmp_path / "none", built))
