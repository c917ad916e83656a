"""A wheel built from the tree holds the whole of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {
    "stillhouse": ROOT / "src" / "stillhouse",
    "stillhouse/components": ROOT / "components",
    "stillhouse/pipelines": ROOT / "pipelines",
    "stillhouse/charts": ROOT / "charts",
}
NEEDLESS = re.compile(r"(^|/)(__pycache__|[^/]+\.egg-info|\.[a-z_]+_cache)(/|$)|\.pyc$|(^|/)\.DS_Store$")


def tree() -> Iterator[str]:
    """Paths in the wheel that the tree calls for. The pages about components are documentation, and stay out."""
    for prefix, folder in ROOTS.items():
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            page = prefix == "stillhouse/components" and path.name == "README.md"
            if path.is_file() and not page and not NEEDLESS.search(name):
                yield f"{prefix}/{name}"


def test_every_package_is_listed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^packages = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    listed = re.findall(r'"([^"]+)"', block[1])
    found = {str(Path(name).parent).replace("/", ".") for name in tree() if name.endswith("/__init__.py")}
    assert sorted(found) == listed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that neither the tree nor what earlier builds left in it matters."""
    copy = tmp_path_factory.mktemp("wheel") / "tree"
    copy.mkdir()
    leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "*.pyc")
    for name in ("src", "components", "pipelines", "charts"):
        shutil.copytree(ROOT / name, copy / name, ignore=leftovers)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    output = copy.parent / "dist"
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = output.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert sorted(set(tree()) - names) == [], "missing in the wheel: see package-data in pyproject.toml"
    assert sorted(names - set(tree())) == [], "in the wheel, but not in the tree"


@pytest.mark.slow
def test_the_wheel_holds_what_is_looked_up_at_run_time(wheel: Path) -> None:
    """By name, so that this fails also when the tree itself has lost them."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    for name in (
        "stillhouse/py.typed",
        "stillhouse/charts/triton/.helmignore",
        "stillhouse/charts/triton/Chart.yaml",
        "stillhouse/charts/triton/files/dashboard.json",
        "stillhouse/charts/triton/files/pod.py",
        "stillhouse/charts/triton/templates/_pod.tpl",
        "stillhouse/charts/triton/templates/NOTES.txt",
        "stillhouse/charts/triton/values.schema.json",
        "stillhouse/evaluation/templates/report.html.j2",
        *(f"stillhouse/pipelines/clusters/{cluster}.yaml" for cluster in ("cpu", "gpu")),
        *(
            f"stillhouse/pipelines/compiled/{pipeline}-{cluster}.yaml"
            for pipeline in ("train_and_deploy", "pretrain")
            for cluster in ("cpu", "gpu")
        ),
        "stillhouse/serving/backends/onnxruntime/model.py",
        "stillhouse/tasks/front_models/text_classification.py",
        *(f"stillhouse/pipelines/presets/{preset}.yaml" for preset in ("base", "demo", "large", "small", "tiny")),
        *(
            f"stillhouse/pipelines/presets/pretrain/{preset}.yaml"
            for preset in ("albert-base", "bert-base", "distilbert-base", "small", "tiny")
        ),
    ):
        assert name in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert "stillhouse = stillhouse.cli.main:main" in scripts
