"""LAMB, the optimizer that ALBERT is pretrained with: it keeps very large batches stable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["Lamb"]


class Lamb(Optimizer):
    """Adam with a step for each weight matrix that is as long as the matrix itself, times the learning rate.

    You et al. 2019 (arXiv:1904.00962), algorithm 2, where the length of a step is the norm itself; Lan et al. 2019,
    section 4.1. For a matrix w, with Adam's bias-corrected moments m and v:

        u = m / (sqrt(v) + eps) + weight_decay · w
        w ← w - lr · |w| / |u| · u

    Where either norm is 0 the factor is 1. Biases and LayerNorms, whose tensors have one dimension and may rightly be
    0, are not scaled: they take Adam's step with decoupled weight decay.

    Args:
        params: parameters of any shapes, or groups of them.
        lr: learning rate: the length of a step, as a share of the matrix's.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the root of the second moment.
        weight_decay: share of the weights that is added to the direction.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        if not (lr >= 0 and eps > 0 and weight_decay >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}: out of range")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step along the gradients that are there; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        denominator = square.sqrt().div_(math.sqrt(1 - second ** state["step"])).add_(group["eps"])
        update = (mean / (1 - first ** state["step"])).div_(denominator)
        update.add_(parameter, alpha=group["weight_decay"])
        if parameter.ndim > 1:
            length, way = parameter.norm(), update.norm()
            # Without asking for the norms here, for which a GPU would have to be waited for.
            update.mul_(torch.where((length > 0) & (way > 0), length / way, torch.ones_like(length)))
        parameter.add_(update, alpha=-group["lr"])
