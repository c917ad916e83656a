"""The losses of pretraining against values computed by hand."""

import math

import pytest
import torch

from stillhouse.objectives import (
    masked_language_loss,
    matched_cosine_loss,
    sentence_pair_loss,
    soft_target_loss,
)


def test_masked_language_loss_is_the_mean_negative_log_probability_of_the_masked_tokens():
    # softmax([0, ln 2, ln 5]) = [1/8, 2/8, 5/8]
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]] * 2)
    found = masked_language_loss(logits, torch.tensor([2, 0]))
    assert found.item() == pytest.approx((-math.log(5 / 8) - math.log(1 / 8)) / 2, abs=1e-6)


def test_sentence_pair_loss_tells_real_pairs_from_false_ones():
    # softmax([ln 3, 0]) = [3/4, 1/4]: the first is told rightly to follow, the second wrongly.
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    found = sentence_pair_loss(logits, torch.tensor([0, 1]))
    assert found.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2, abs=1e-6)


def test_the_soft_term_over_the_vocabulary_is_a_mean_over_masked_positions_times_the_squared_temperature():
    # Two positions, three tokens, temperature 2. Teacher: softmax([0, 0, 2 ln 2 / 2]) = [1/4, 1/4, 2/4]; student: 1/3.
    teacher = torch.tensor([[0.0, 0.0, 2 * math.log(2)], [1.0, 1.0, 1.0]])
    student = torch.zeros(2, 3)
    divergence = 2 * (1 / 4) * math.log((1 / 4) / (1 / 3)) + (1 / 2) * math.log((1 / 2) / (1 / 3))
    # At the second position both are uniform and do not differ.
    assert soft_target_loss(student, teacher, 2.0).item() == pytest.approx(4 * divergence / 2, abs=1e-6)


def test_each_layer_of_the_student_is_held_against_the_teachers_that_it_follows():
    right, up, left = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
    mask = torch.tensor([[1, 1, 0]])

    def states(*directions: list[float]) -> list[torch.Tensor]:
        # The third token is padding, and points elsewhere.
        return [torch.tensor([[direction, direction, [0.3, -0.9]]]) for direction in directions]

    teacher = states(left, right, left, up)  # the embeddings' output, then layers 1 to 3
    student = states(right, right, right)  # the embeddings' output, which is not compared, then layers 1 and 2
    assert matched_cosine_loss(student, teacher, (1, 3), mask).item() == pytest.approx((0 + 1) / 2, abs=1e-6)
    assert matched_cosine_loss(student, teacher, (2, 3), mask).item() == pytest.approx((2 + 1) / 2, abs=1e-6)
    with pytest.raises(ValueError):
        matched_cosine_loss(student, teacher, (1, 2, 3), mask)
