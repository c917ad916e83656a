"""The version of the code behind a step: what caching must know besides a step's inputs.

A pipeline's cache keys on inputs and image (locally, on inputs and the component's own few lines), so an edit in the
library, or another release of one that it uses, would go unseen. A step's version is a digest of every module that the
step's entry module imports, directly or not, and of the version of each distribution that those modules import.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["PRETRAINING_MODULES", "STEP_MODULES", "code_version", "step_versions"]

_ROOT = Path(__file__).parent
# Packages copy these as files, so nothing imports them.
_FRONT_MODELS = tuple(
    f"stillhouse.tasks.front_models.{path.stem}" for path in sorted(_ROOT.glob("tasks/front_models/*.py"))
)

STEP_MODULES = {
    "prepare_data": ("stillhouse.data.prepare", "stillhouse.data.demo"),
    "train": ("stillhouse.training.steps",),
    "package": ("stillhouse.export.package", *_FRONT_MODELS),
    "evaluate": ("stillhouse.evaluation.evaluate", "stillhouse.evaluation.worker"),
}
"""Entry modules of each kind of cached step of the main pipeline."""

PRETRAINING_MODULES = {
    "prepare_corpus": ("stillhouse.pretraining.corpus",),
    "pretrain": ("stillhouse.pretraining.steps",),
}
"""The same of the pretraining pipeline."""


def step_versions(modules: Mapping[str, tuple[str, ...]] = STEP_MODULES) -> dict[str, str]:
    """The code version of each cached step, by the keys of `STEP_MODULES` or `PRETRAINING_MODULES`."""
    return {step: code_version(*entries) for step, entries in modules.items()}


def code_version(*modules: str) -> str:
    """Digest (16 hex digits) of the modules, all they import from Stillhouse, and their distributions' versions."""
    digest = hashlib.sha256()
    sources, libraries = _closure(modules)
    for name in sorted(sources):
        path = sources[name]
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
        for data in _data_files(path):
            digest.update(f"{data.name}\0".encode() + data.read_bytes() + b"\0")
    for library in sorted(libraries):
        digest.update(f"{library}\0".encode())
    digest.update(f"python {sys.version_info[0]}.{sys.version_info[1]}".encode())
    return digest.hexdigest()[:16]


def _closure(modules: tuple[str, ...]) -> tuple[dict[str, Path], set[str]]:
    """Paths of the modules reached from `modules` by imports anywhere in the code, and `name==version` of the rest."""
    sources: dict[str, Path] = {}
    outside: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in sources:
            continue
        path = _find(name)
        if path is None:
            continue
        sources[name] = path
        # Importing a module imports its parents first, but what a parent re-exports is not what the module uses.
        for imported in _imports(path):
            if imported.split(".")[0] == "stillhouse":
                waiting.append(imported)
            else:
                outside.add(imported.split(".")[0])
    # The release itself always counts.
    sources.setdefault("stillhouse", _ROOT / "__init__.py")
    distributions = _distributions()
    libraries = {
        f"{distribution}=={importlib.metadata.version(distribution)}"
        for top in outside
        for distribution in distributions.get(top, ())
    }
    return sources, libraries


def _find(module: str) -> Path | None:
    """The file of a module of Stillhouse; None where the name is an attribute rather than a module."""
    base = _ROOT.joinpath(*module.split(".")[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports; `from a import b` gives both `a` and `a.b`, since `b` may be a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def _data_files(path: Path) -> list[Path]:
    """Templates beside a module; they shape what the module writes."""
    folder = path.parent / "templates"
    return sorted(p for p in folder.glob("*") if p.is_file()) if folder.is_dir() else []


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return {top: sorted(set(names)) for top, names in importlib.metadata.packages_distributions().items()}
