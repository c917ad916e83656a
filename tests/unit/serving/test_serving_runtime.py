from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_package import LABELS, TEXTS, build_package

from stillhouse.artifacts import PackageManifest
from stillhouse.serving import runtime
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.runtime import PackageRuntime


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return build_package(tmp_path_factory.mktemp("runtime") / "package")


def test_predict(package):
    found = PackageRuntime(package)
    probabilities, labels = found.predict(TEXTS)
    assert probabilities.shape == (len(TEXTS), len(LABELS))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert labels == [LABELS[index] for index in probabilities.argmax(axis=1)]
    assert len(set(labels)) > 1
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(found.predict([text.encode()]).probabilities[0], probabilities[row], atol=1e-6)


def test_encode_is_blind_to_padding(package):
    found = PackageRuntime(package)
    short = found.encode(np.array([[2, 9, 3]]), np.array([[1, 1, 1]]))
    long = found.encode(np.array([[2, 9, 3, 0, 0]]), np.array([[1, 1, 1, 0, 0]]))
    assert short.dtype == np.float32
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_leaves_the_package_as_it_was(package):
    PackageRuntime(package).predict(["good"])
    PackageManifest.load(package).verify(package)


@pytest.mark.parametrize("text", ["x" * 401, b"\xff", "\ud800"])
def test_refuses_as_the_server_does(package, text):
    with pytest.raises(ValueError, match=r"limit|UTF-8"):
        PackageRuntime(package).predict(["fine", text])


def test_any_version_folder_and_no_stillhouse(package, tmp_path):
    """It is shipped with registered models as one file, and reads what was fetched as version 7."""
    copy = shutil.copytree(package, tmp_path / "package")
    set_model_version(copy / "triton", "reviews", "7")
    shutil.copy(runtime.__file__, tmp_path / "stillhouse_runtime.py")
    script = (
        "import sys; sys.modules['stillhouse'] = None\n"
        "from stillhouse_runtime import PackageRuntime\n"
        "print(PackageRuntime(sys.argv[1]).predict(['good', 'bad']).labels)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(copy)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == str(PackageRuntime(package).predict(["good", "bad"]).labels)


def test_not_a_package(tmp_path):
    with pytest.raises(FileNotFoundError):
        PackageRuntime(Path(tmp_path))


def test_nothing_is_reported_to_anyone(package, tmp_path):
    """ONNX Runtime notes an id of the machine in the home folder when it is about to."""
    code = f"from stillhouse.serving.runtime import PackageRuntime; PackageRuntime({str(package)!r}).predict(['good'])"
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    subprocess.run([sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
