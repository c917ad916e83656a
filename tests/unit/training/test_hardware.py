"""Which precision `auto` comes to."""

import pytest
import torch

from stillhouse.training.hardware import uses_bf16


@pytest.mark.parametrize(
    ("gpu", "capabilities", "expected"),
    [
        (None, {}, False),
        (None, {"avx512_f": True, "avx512_bf16": False}, False),
        (None, {"avx512_bf16": True}, True),
        (None, {"amx_bf16": True}, True),
        (False, {"avx512_bf16": True}, False),
        (True, {}, True),
    ],
)
def test_auto_is_bf16_where_there_are_instructions_for_it(
    gpu: bool | None, capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert uses_bf16("auto") is expected
    assert uses_bf16("bf16") and not uses_bf16("fp32")


def test_a_torch_that_does_not_tell_what_the_cpu_has_trains_in_fp32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not uses_bf16("auto")
