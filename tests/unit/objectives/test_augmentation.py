"""Word dropout."""

import torch

from stillhouse.objectives import word_dropout


def test_word_dropout_hides_its_share_and_keeps_the_ends_and_the_padding():
    torch.manual_seed(0)
    mask = torch.ones(200, 12, dtype=torch.int64)
    mask[100:, 8:] = 0
    found = word_dropout(mask, 0.25)
    assert found.dtype == mask.dtype
    assert (found <= mask).all()
    assert found[:, 0].all()
    assert found[:100, 11].all()
    assert found[100:, 7].all()
    inner = torch.cat([found[:100, 1:11].flatten(), found[100:, 1:7].flatten()]).float()
    assert abs(1 - inner.mean().item() - 0.25) < 0.03
    assert not torch.equal(found, word_dropout(mask, 0.25))
    assert torch.equal(word_dropout(mask, 0.0), mask)
