"""The distillation terms against values computed by hand."""

import math

import pytest
import torch

from stillhouse.objectives import hard_label_loss, hidden_cosine_loss, soft_target_loss


def test_hard_label_loss_is_the_mean_negative_log_probability():
    # softmax([0, ln 3]) = [1/4, 3/4]
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    found = hard_label_loss(logits, torch.tensor([1, 0]))
    assert found.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2, abs=1e-6)


def test_soft_target_loss_softens_both_sides_and_scales_by_the_squared_temperature():
    # At temperature 2 the logits halve: teacher softmax([0, ln 3]) = [1/4, 3/4], student softmax([0, 0]) = [1/2, 1/2].
    teacher = torch.tensor([[0.0, 2 * math.log(3)]])
    student = torch.tensor([[1.0, 1.0]])
    divergence = 1 / 4 * math.log((1 / 4) / (1 / 2)) + 3 / 4 * math.log((3 / 4) / (1 / 2))
    assert soft_target_loss(student, teacher, 2.0).item() == pytest.approx(4 * divergence, abs=1e-6)


def test_soft_target_loss_vanishes_where_the_student_agrees_and_its_gradient_does_too():
    logits = torch.tensor([[0.3, -1.2, 2.0]])
    student = logits.clone().requires_grad_()
    loss = soft_target_loss(student, logits + 5.0, 3.0)  # a shift of all logits changes no probability
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_soft_target_loss_is_a_mean_over_the_batch():
    teacher, student = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    one = soft_target_loss(student, teacher, 1.0)
    three = soft_target_loss(student.repeat(3, 1), teacher.repeat(3, 1), 1.0)
    assert three.item() == pytest.approx(one.item())


def test_hidden_cosine_loss_ignores_padding_and_scale():
    student = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[5.0, 0.0], [1.0, 0.0], [-1.0, -1.0]]])
    mask = torch.tensor([[1, 1, 0]])
    # The first token is parallel (0), the second orthogonal (1), the third is padding: mean 1/2.
    assert hidden_cosine_loss(student, teacher, mask).item() == pytest.approx(0.5, abs=1e-6)
    # Counting the padding, which points the opposite way (2), would give 1.
    assert hidden_cosine_loss(student, teacher, torch.ones_like(mask)).item() == pytest.approx(1.0, abs=1e-6)
