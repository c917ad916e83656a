"""Settings of the package step."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.errors import Problem
from stillhouse.serving.repository import name_problems

__all__ = ["PRECISIONS", "PackageConfig"]

PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True, kw_only=True)
class PackageConfig:
    """Settings of `package_model`."""

    served_name: str
    """Name of the public Triton model: the registered model's name."""
    precisions: str = "fp32,int8"
    """Comma-separated precisions to package; fp32 must be one, since retention is measured against it."""
    max_text_bytes: int = 20_000
    """Longer texts, in UTF-8 bytes, are refused before tokenising."""
    max_batch_size: int = 64
    """Largest number of texts in one request."""
    fp32_tolerance: float = 1e-3
    """Largest absolute difference of any FP32 probability from PyTorch's."""
    int8_tolerance: float = 0.05
    """Largest mean absolute difference of INT8 probabilities from PyTorch's."""
    parity_rows: int = 256
    """Rows of the validation split on which parity is measured."""

    def precision_list(self) -> tuple[str, ...]:
        """The precisions in the order given."""
        return tuple(part.strip() for part in self.precisions.split(",") if part.strip())

    def problems(self) -> list[Problem]:
        """Everything wrong with the settings, by the name of the pipeline's parameter."""
        found = name_problems(self.served_name)
        chosen = self.precision_list()
        if unknown := [p for p in chosen if p not in PRECISIONS]:
            found.append(
                Problem("precisions", f"{', '.join(unknown)} is unknown.", f"Choose of {','.join(PRECISIONS)}.")
            )
        elif "fp32" not in chosen or len(set(chosen)) != len(chosen):
            found.append(Problem("precisions", f"{self.precisions!r} will not do.", "Give fp32, or fp32,int8."))
        if not 1 <= self.max_text_bytes <= 1_000_000:
            found.append(Problem("max_text_bytes", f"{self.max_text_bytes} will not do.", "Give 1 to 1000000 bytes."))
        if not 1 <= self.max_batch_size <= 1024:
            found.append(Problem("max_batch_size", f"{self.max_batch_size} will not do.", "Give 1 to 1024 texts."))
        for name in ("fp32_tolerance", "int8_tolerance"):
            if not 0 < getattr(self, name) <= 1:
                found.append(Problem(name, f"{getattr(self, name)} will not do.", "Give a number above 0, at most 1."))
        return found
