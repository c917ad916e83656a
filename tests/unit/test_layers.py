"""Imports point one way: pipelines → components → stillhouse, and downwards inside the library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "stillhouse"

LAYERS = (
    ("cli",),
    ("inspection",),
    ("deploy",),
    ("registry",),
    ("comparison",),
    ("evaluation",),
    ("serving", "export", "loadtest"),
    ("training", "pretraining"),
    ("tasks",),
    ("objectives", "models", "data", "client"),
    (
        "errors",
        "artifacts",
        "interrupts",
        "kubernetes_api",
        "plotting",
        "progress",
        "redaction",
        "state",
        "storage",
        "versions",
    ),
)
"""From the top down; each may import what is below it, and what stands beside it."""

DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}


def imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, also inside functions and for type checkers alone.

    `from a.b import c` yields `a.b` and `a.b.c`, since `c` may be a module.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def files(folder: Path, package: str) -> Iterator[tuple[Path, str]]:
    """Python files under a folder, with the package that each is in."""
    for path in sorted(folder.rglob("*.py")):
        yield path, ".".join([package, *path.relative_to(folder).parent.parts])


def offences(folder: Path, package: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, inside in files(folder, package)
        for line, name in imports(path, inside)
        if any(name == one or name.startswith(f"{one}.") for one in forbidden)
    ]


def test_every_part_of_the_library_has_a_layer() -> None:
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__"} <= set(DEPTH), f"add to LAYERS: {sorted(found - set(DEPTH) - {'__init__'})}"


def test_the_library_imports_downwards() -> None:
    wrong = []
    for path, package in files(SOURCE, "stillhouse"):
        part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for line, name in imports(path, package):
            parts = name.split(".")
            of_ours = parts[0] == "stillhouse" and len(parts) > 1 and parts[1] in DEPTH and part in DEPTH
            if of_ours and DEPTH[parts[1]] < DEPTH[part]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {part} imports {name}, which is above it")
    assert not wrong, "\n".join(wrong)


def test_the_library_knows_no_pipelines() -> None:
    forbidden = ("kfp", "kfp_server_api", "stillhouse.components", "stillhouse.pipelines")
    assert offences(SOURCE, "stillhouse", forbidden) == []


def test_components_know_no_pipelines() -> None:
    assert offences(ROOT / "components", "stillhouse.components", ("stillhouse.pipelines",)) == []


def test_nothing_is_imported_by_a_bare_folder_name() -> None:
    for folder in ("components", "pipelines", "src/stillhouse"):
        assert offences(ROOT / folder, "x", ("components", "pipelines", "src")) == []


@pytest.mark.parametrize("path", sorted((SOURCE / "tasks" / "front_models").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_front_models_need_no_stillhouse(path: Path) -> None:
    """They run inside the inference server, where it is not installed."""
    assert [name for _, name in imports(path, "front") if name.split(".")[0] == "stillhouse"] == []


def test_the_check_sees_an_offence(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "module.py"
    file.parent.mkdir()
    file.write_text("def f():\n    from ..cli import main\n    import stillhouse.pipelines.local\n")
    assert [name for _, name in imports(file, "stillhouse.deep")] == [
        "stillhouse.cli",
        "stillhouse.cli.main",
        "stillhouse.pipelines.local",
    ]
