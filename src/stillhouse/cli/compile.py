"""`stillhouse compile`: the pipeline as the IR YAML that Kubeflow Pipelines takes."""

from __future__ import annotations

import difflib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.text import Text

from stillhouse.cli.launch import pipelines_command
from stillhouse.cli.output import stderr
from stillhouse.errors import InputError, Problem, StillhouseError

__all__ = ["compile_pipeline", "golden_path"]

_DIFF_LINES = 40


def golden_path() -> Path:
    """The compiled pipeline that this release carries. Looked up without importing the package, which imports kfp."""
    spec = find_spec("stillhouse.pipelines")
    if spec is None or not spec.submodule_search_locations:
        raise StillhouseError("the package stillhouse.pipelines is not installed: pip install 'stillhouse[train]'")
    return Path(next(iter(spec.submodule_search_locations))) / "compiled" / "train_and_deploy.yaml"


def compile_pipeline(output: Path | None, *, check: bool) -> int:
    """Compile the main pipeline.

    Args:
        output: file to write; standard output without it.
        check: write nothing, and compare with the compiled pipeline that this release carries.

    Returns:
        0, or 1 when the check finds a difference.

    Raises:
        InputError: the file cannot be written.
        StillhouseError: the pipeline does not compile; the compiler's own words are on standard error.
    """
    compiled = subprocess.run(pipelines_command("compile"), stdout=subprocess.PIPE, check=False)
    if compiled.returncode:
        raise StillhouseError(f"the pipeline does not compile (exit status {compiled.returncode}); see above.")
    text = compiled.stdout.decode("utf-8")
    if check:
        return _check(text, golden_path())
    if output is None:
        sys.stdout.write(text)
        return 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(Problem("--output", f"cannot write {output} ({error.strerror or error}).")) from None
    return 0


def _check(text: str, golden: Path) -> int:
    kept = golden.read_text(encoding="utf-8") if golden.is_file() else ""
    if kept == text:
        return 0
    console = stderr()
    diff = list(difflib.unified_diff(kept.splitlines(), text.splitlines(), str(golden), "compiled now", lineterm=""))
    for line in diff[:_DIFF_LINES]:
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        console.print(Text(line, style=style), soft_wrap=True)
    if len(diff) > _DIFF_LINES:
        console.print(f"… and {len(diff) - _DIFF_LINES} more lines")
    console.print(Text.assemble(("✗ ", "red"), f"{golden} is not what the pipeline compiles to."), soft_wrap=True)
    console.print(Text(f"    → stillhouse compile --output {golden}", style="dim"), soft_wrap=True)
    return 1
