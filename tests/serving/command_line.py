"""`stillhouse`, run as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class CommandLine:
    """Runs `stillhouse` with a state folder of its own."""

    def __init__(self, home: Path):
        self.environment = {**os.environ, "STILLHOUSE_HOME": str(home)}
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stillhouse.cli.main", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
