"""The container image that components run in, tied to the release."""

from stillhouse import __version__

TRAIN_IMAGE = f"ghcr.io/stillhouse/stillhouse-train:{__version__}"
"""Holds Stillhouse with torch, transformers, onnx and mlflow on Python."""
