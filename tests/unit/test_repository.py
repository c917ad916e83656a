"""The repository as a whole: what it says, and that its parts agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", ".stillhouse", "__pycache__", "build", "dist", "node_modules"}
BINARY = {".bin", ".gz", ".onnx", ".parquet", ".png", ".pyc", ".safetensors"}


def walk() -> Iterator[Path]:
    """Files of the tree without git: an unpacked archive has none."""
    for folder, names, files in os.walk(ROOT):
        names[:] = [n for n in names if n not in SKIPPED and not n.endswith((".egg-info", "_cache"))]
        yield from (Path(folder) / name for name in files)


@cache
def tracked() -> tuple[Path, ...]:
    """The repository's files: tracked, or new and not ignored."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = list(walk())
    return tuple(path for path in paths if path.is_file())


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every text file but this one, which spells out what must not be said."""
    for path in tracked():
        if path.suffix not in BINARY and path != Path(__file__).resolve():
            yield str(path.relative_to(ROOT)), text_of(path)


def lines_with(pattern: str, *, outside: tuple[str, ...] = ()) -> list[str]:
    found = re.compile(pattern)
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts()
        if not name.startswith(outside)
        for number, line in enumerate(text.splitlines(), start=1)
        if found.search(line)
    ]


def test_every_file_is_utf_8_text_or_known_to_be_binary() -> None:
    assert sum(1 for _ in texts()) > 50  # reading raises where one is not


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?<![\w.])/(work|root|home/\w+|Users/\w+)/",
        r"/opt/(wheels|pypi)",
        r"/tmp/(env|contract|bash_jobs)",
        r"(?i)file:///opt",
    ],
    ids=["home folders", "package mirrors", "scratch files", "local indexes"],
)
def test_no_path_of_a_single_machine(pattern: str) -> None:
    assert lines_with(pattern) == []


def test_shared_data_is_for_tests_and_benchmarks_alone() -> None:
    assert lines_with(r"\.\./shared|[\"']shared[\"']", outside=("tests/", "benchmarks/", ".ci/")) == []


def test_the_repository_speaks_of_the_product_alone() -> None:
    words = r"DESIGN\.md|issues? #?\d+|(this|next|last|my) session|subagents?|the lead"
    assert lines_with(rf"(?i)\b({words})\b") == []


def test_nothing_is_left_to_do_later() -> None:
    assert lines_with(r"\b(TODO|FIXME|XXX|HACK)\b") == []


def test_no_large_file() -> None:
    assert [str(path) for path in tracked() if path.stat().st_size > 1_000_000] == []


def test_no_tests_inside_the_packages() -> None:
    """They would make the folders importable as bare `components` and `pipelines` too."""
    inside = ("components/", "pipelines/", "src/")
    names = [path.relative_to(ROOT).as_posix() for path in tracked()]
    assert [n for n in names if n.startswith(inside) and re.search(r"(^|/)(test_[^/]*|conftest)\.py$", n)] == []


def test_test_modules_have_names_of_their_own() -> None:
    """Test folders are no packages, so two modules of one name would be one module."""
    seen: dict[str, Path] = {}
    for path in tracked():
        if path.suffix == ".py" and ROOT / "tests" in path.parents and path.name != "conftest.py":
            assert path.name not in seen, f"{path} and {seen[path.name]}"
            seen[path.name] = path


def test_links_of_the_pages_lead_somewhere() -> None:
    missing = []
    for name, text in texts():
        if name.endswith(".md"):
            for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
                if "://" not in target and not ((ROOT / name).parent / target).exists():
                    missing.append(f"{name}: {target}")
    assert missing == []


def test_the_changelog_knows_this_version() -> None:
    from stillhouse import __version__

    assert re.search(rf"^## \[(Unreleased|{re.escape(__version__)})\]", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)


def test_ci_runs_what_people_run() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert {"demo", "test", "check"} <= targets
    for name in (".ci/run", ".github/workflows/ci.yml"):
        for line in re.findall(r"\bmake (?:[A-Z_]+=\S+ )*([a-z -]+)", text_of(ROOT / name)):
            assert set(line.split()) <= targets, f"{name}: {line}"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.slow
def test_generated_pages_are_up_to_date() -> None:
    pytest.importorskip("kfp")
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
