"""Packaging: ONNX export, quantisation, parity, and the Triton model repository."""

from stillhouse.export.config import PackageConfig

__all__ = ["PackageConfig"]
