"""`stillhouse compile`: a pipeline as the IR YAML that Kubeflow Pipelines takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stillhouse.cli.launch import pipelines_command
from stillhouse.errors import InputError, Problem, StillhouseError

__all__ = ["compile_pipeline"]


def compile_pipeline(
    cluster: str, preset: str, settings: Sequence[str], output: Path | None, workflow: str = ""
) -> int:
    """Compile a pipeline.

    Args:
        cluster: name of a cluster that comes with the release, or the path of a file that describes one.
        preset: preset that the parameters' defaults come from; empty takes the cluster's.
        settings: `key=value` for each parameter whose default is another.
        output: file to write; standard output without it.
        workflow: which pipeline; empty is the main one.

    Returns:
        0, or 2 when the input is at fault; the problems are on standard error then.

    Raises:
        InputError: the file cannot be written.
        StillhouseError: the pipeline does not compile; the compiler's own words are on standard error.
    """
    options = [part for setting in settings for part in ("--set", setting)]
    which = ["--workflow", workflow] if workflow else []
    command = pipelines_command("compile", *which, "--cluster", cluster, "--preset", preset, *options)
    compiled = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if compiled.returncode == InputError.exit_code:
        return compiled.returncode
    if compiled.returncode:
        raise StillhouseError(f"the pipeline does not compile (exit status {compiled.returncode}); see above.")
    text = compiled.stdout.decode("utf-8")
    if output is None:
        sys.stdout.write(text)
        return 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(Problem("--output", f"cannot write {output} ({error.strerror or error}).")) from None
    return 0
