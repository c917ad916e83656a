"""The container images that components run in, tied to the release. `make images` builds them under these names."""

from stillhouse import __version__

__all__ = ["OPS_IMAGE", "REGISTRY", "TRAIN_IMAGE", "image"]

REGISTRY = "ghcr.io/stillhouse"
"""Registry and folder of the released images."""


def image(name: str, *, registry: str = REGISTRY, tag: str = __version__) -> str:
    """Full name of the image that `images/<name>/Dockerfile` builds."""
    return f"{registry.rstrip('/')}/stillhouse-{name}:{tag}"


TRAIN_IMAGE = image("train")
"""Everything that prepares, trains, packages, measures and registers: torch, transformers, onnx, mlflow."""

OPS_IMAGE = image("ops")
"""What talks to services only: mlflow-skinny, Triton's client, helm and the charts; no torch."""
