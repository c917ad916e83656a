"""The helm binary: found, and asked. Helm 3.10 and newer; of helm 4, only what it takes in the same words is used."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stillhouse.deploy.kubernetes.access import Access
from stillhouse.errors import InputError, Problem, ServingError
from stillhouse.redaction import redacted

__all__ = ["HELM_VARIABLE", "Helm", "HelmError", "find_helm"]

HELM_VARIABLE = "STILLHOUSE_HELM"
"""Environment variable that names the binary, where it is not the `helm` on the path."""
_OLDEST = (3, 10)
_QUICK_S = 120.0
"""Seconds for what only reads or writes a few objects."""
_GRACE_S = 30.0
_PR_SET_PDEATHSIG = 1


class HelmError(ServingError):
    """Helm ended with an error. `said` is its last word, `output` what it printed before."""

    def __init__(self, said: str, output: str = "") -> None:
        self.said, self.output = said, output
        super().__init__(said)


def find_helm() -> Path | None:
    """The binary that `STILLHOUSE_HELM` names, or the one on the path; None where there is none."""
    found = os.environ.get(HELM_VARIABLE) or shutil.which("helm")
    return Path(found) if found and os.access(found, os.X_OK) else None


class Helm:
    """Helm, for one namespace.

    Args:
        access: the way to the cluster; None is enough to render a chart.

    Raises:
        InputError: there is no helm, or it is too old.
    """

    def __init__(self, access: Access | None = None) -> None:
        binary = find_helm()
        if binary is None:
            remedy = f"Install helm 3.10 or newer (https://helm.sh), or name it with {HELM_VARIABLE}."
            raise InputError(Problem("helm", "there is no helm on the path.", remedy))
        self._binary, self._flags = binary, access.flags if access else []
        said = self._call(["version", "--short"], timeout_s=_QUICK_S)
        match = re.match(r"v(\d+)\.(\d+)", said)
        if match is None or (int(match[1]), int(match[2])) < _OLDEST:
            what = f"{binary} is {said.strip() or 'of an unknown version'}."
            raise InputError(Problem("helm", what, "Install helm 3.10 or newer (https://helm.sh)."))

    def run(self, *arguments: str, values: Mapping[str, Any] | None = None, timeout_s: float = _QUICK_S) -> str:
        """Run a command, and return what it printed.

        Args:
            arguments: command, arguments and flags.
            values: given to the command's `--values`, by standard input.
            timeout_s: seconds after which helm is ended; what waits itself (`--timeout`) needs less.

        Raises:
            HelmError: it failed.
        """
        given = [*arguments, *self._flags, *([] if values is None else ["--values=-"])]
        return self._call(given, text="" if values is None else json.dumps(values), timeout_s=timeout_s)

    def read(self, *arguments: str) -> Any:
        """Run a command that answers in JSON."""
        return json.loads(self.run(*arguments, "--output=json"))

    def _call(self, arguments: Sequence[str], *, text: str = "", timeout_s: float) -> str:
        # In a session of its own: Ctrl-C is for whoever goes back to the release before, and who ends helm first.
        process = subprocess.Popen(
            [str(self._binary), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        try:
            out, err = process.communicate(text, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            raise HelmError(f"helm {arguments[0]} did not end within {timeout_s:.0f} s.") from None
        except BaseException:
            _end(process)
            raise
        if process.returncode != 0:
            raise HelmError(redacted(_last_word(err) or f"helm {arguments[0]} ended with {process.returncode}"), out)
        return out


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """Have the kernel end helm with this process, as SIGTERM does: it notes that its release has failed."""
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[str]) -> None:
    """End helm, and give it time to write down what became of its release."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_GRACE_S)
        return
    process.kill()
    process.communicate()


def _last_word(text: str) -> str:
    """Helm's error: all from `Error:` on, without what it and its libraries warn of before."""
    lines = [line for line in text.strip().splitlines() if not re.match(r"(WARNING:|[WIE]\d{4} )", line)]
    start = next((n for n, line in enumerate(lines) if line.startswith("Error: ")), max(0, len(lines) - 5))
    return "\n".join(lines[start:]).removeprefix("Error: ").strip()
