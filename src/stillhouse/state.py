"""Where Stillhouse keeps its state on a machine.

<home>/mlflow.db, mlartifacts/   the model registry, on SQLite
<home>/runs/<run>/               events.jsonl, kfp.log and run.json of each run
<home>/artifacts/                what the steps wrote, and kfp.local's cache
<home>/checkpoints/              resumable training checkpoints
<home>/serving/                  the local Triton server: state, logs, releases
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["HOME_VARIABLE", "TRACKING_VARIABLE", "home", "tracking_uri"]

HOME_VARIABLE = "STILLHOUSE_HOME"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_DEFAULT = ".stillhouse"


def home() -> Path:
    """Absolute path of the state folder, whether or not it exists."""
    return Path(os.environ.get(HOME_VARIABLE) or _DEFAULT).expanduser().absolute()


def tracking_uri() -> str:
    """MLflow's tracking URI: what `MLFLOW_TRACKING_URI` says, else the database in the state folder."""
    return os.environ.get(TRACKING_VARIABLE) or f"sqlite:///{home() / 'mlflow.db'}"
