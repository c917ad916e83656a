"""Stillhouse takes labelled text to a small, fast, autoscaled gRPC endpoint."""

__version__ = "0.1.0"

import os

from stillhouse.errors import (
    InputError,
    ManifestError,
    ParityError,
    Problem,
    RegistryError,
    ServingError,
    StillhouseError,
    TrainingError,
)

# ONNX Runtime, as PyPI has it, reports to its maker and keeps an id of the machine in the home folder. It reads this
# when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "InputError",
    "ManifestError",
    "ParityError",
    "Problem",
    "RegistryError",
    "ServingError",
    "StillhouseError",
    "TrainingError",
    "__version__",
]
