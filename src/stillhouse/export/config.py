"""Settings of the package step."""

from __future__ import annotations

from dataclasses import dataclass, field

from stillhouse.errors import Problem
from stillhouse.serving.repository import ServingOptions, name_problems

__all__ = ["PRECISIONS", "PackageConfig"]

PRECISIONS = ("fp32", "fp16", "int8", "int8-static")


@dataclass(frozen=True, kw_only=True)
class PackageConfig:
    """Settings of `package_model`."""

    served_name: str
    """Name of the public Triton model: the registered model's name."""
    precisions: str = "fp32,int8"
    """Comma-separated precisions to package; fp32 must be one, since retention is measured against it."""
    fp32_tolerance: float = 1e-3
    """Largest absolute difference of any FP32 probability from PyTorch's."""
    fp16_tolerance: float = 0.02
    """Largest absolute difference of any FP16 probability from PyTorch's."""
    int8_tolerance: float = 0.05
    """Largest mean absolute difference of INT8 probabilities, of either kind, from PyTorch's."""
    calibration_rows: int = 128
    """Rows of the training split on which static INT8 observes the ranges of activations."""
    parity_rows: int = 256
    """Rows of the validation split on which parity is measured."""
    options: ServingOptions = field(default_factory=ServingOptions)
    """How the packages are to be served."""

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
            remedy = "Give fp32, and after a comma each other one once, as in fp32,int8."
            found.append(Problem("precisions", f"{self.precisions!r} will not do.", remedy))
        for name in ("fp32_tolerance", "fp16_tolerance", "int8_tolerance"):
            if not 0 < getattr(self, name) <= 1:
                found.append(Problem(name, f"{getattr(self, name)} will not do.", "Give a number above 0, at most 1."))
        if not 1 <= self.calibration_rows <= 10_000:
            remedy = "Give a whole number from 1 to 10000."
            found.append(Problem("calibration_rows", f"{self.calibration_rows} will not do.", remedy))
        return [*found, *self.options.problems()]
