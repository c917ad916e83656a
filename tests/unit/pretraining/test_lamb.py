"""LAMB's steps, computed by hand, and beside PyTorch's AdamW where both are to be the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from stillhouse.pretraining.lamb import Lamb


def parameter(values: Any, gradient: Any) -> torch.nn.Parameter:
    one = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))
    one.grad = torch.tensor(gradient, dtype=torch.float64)
    return one


def test_the_first_step_of_a_matrix_by_hand():
    weights = parameter([[3.0, 0.0], [0.0, 4.0]], [[0.1, -0.2], [0.0, 0.5]])
    Lamb([weights], lr=0.1, eps=1e-12, weight_decay=0.5).step()
    # The bias-corrected moments of the first step are g and g², so Adam's direction is the gradient's sign.
    way = torch.tensor([[1 + 1.5, -1.0], [0.0, 1 + 2.0]], dtype=torch.float64)
    length = math.sqrt(2.5**2 + 1 + 3**2)
    wanted = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64) - 0.1 * 5 / length * way
    torch.testing.assert_close(weights.detach(), wanted)


def test_a_step_is_as_long_as_the_matrix_whatever_the_gradient():
    for scale in (1e-3, 1.0, 1e3):
        torch.manual_seed(0)
        weights = torch.nn.Parameter(torch.randn(5, 7, dtype=torch.float64))
        optimizer, before = Lamb([weights], lr=0.01, eps=1e-12), weights.detach().clone()
        for _ in range(3):
            weights.grad = scale * torch.randn(5, 7, dtype=torch.float64)
            last = weights.detach().clone()
            optimizer.step()
            moved = (weights.detach() - last).norm()
            torch.testing.assert_close(moved, 0.01 * last.norm())
        assert (weights - before).norm() > 0


def test_vectors_and_empty_matrices_take_adams_steps():
    torch.manual_seed(0)
    start = [torch.randn(6, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)]
    made = [[torch.nn.Parameter(one.clone()) for one in start] for _ in range(2)]
    optimizers = [
        Lamb(made[0], lr=0.01, eps=1e-8, weight_decay=0.0),
        torch.optim.AdamW(made[1], lr=0.01, eps=1e-8, weight_decay=0.0),
    ]
    # A matrix of zeros has no length: its first step is Adam's, and has one from then on.
    for number in range(4):
        gradients = [torch.randn_like(one) for one in start]
        for parameters, optimizer in zip(made, optimizers, strict=True):
            for one, gradient in zip(parameters, gradients, strict=True):
                one.grad = gradient.clone()
            optimizer.step()
        torch.testing.assert_close(made[0][0], made[1][0])
        assert torch.allclose(made[0][1], made[1][1]) == (number == 0)


def test_what_has_no_gradient_stays_and_a_state_goes_on():
    torch.manual_seed(0)
    whole, halves = (torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64)) for _ in range(2))
    idle = torch.nn.Parameter(torch.ones(2))
    gradients = [torch.randn(2, 3, dtype=torch.float64) for _ in range(4)]
    once = Lamb([whole, idle])
    for gradient in gradients:
        whole.grad = gradient
        once.step()
    first = Lamb([halves])
    for gradient in gradients[:2]:
        halves.grad = gradient
        first.step()
    second = Lamb([halves])
    second.load_state_dict(first.state_dict())
    for gradient in gradients[2:]:
        halves.grad = gradient
        second.step()
    assert torch.equal(whole, halves)
    assert torch.equal(idle, torch.ones(2))


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"eps": 0}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="out of range"):
        Lamb([torch.nn.Parameter(torch.ones(2))], **wrong)
