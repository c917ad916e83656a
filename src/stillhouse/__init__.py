"""Stillhouse takes labelled text to a small, fast, autoscaled gRPC endpoint."""

__version__ = "0.1.0"

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
