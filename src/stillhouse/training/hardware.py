"""What the machine at hand decides of a training: its precision, and its threads."""

from __future__ import annotations

from typing import Any

import torch

from stillhouse.training import ranks

__all__ = ["limit_threads", "uses_bf16", "uses_cpu"]

_ONE_THREAD_WIDTH = 128
"""Hidden size up to which a CPU trains faster on one thread: the matrices are too small to share, and threads that wait
for one another spin, many times slower on a machine that does anything else."""


def limit_threads(hidden_size: int | None) -> None:
    """Give a small model one thread, where there is no GPU; one whose size is not known keeps all."""
    if not torch.cuda.is_available() and hidden_size is not None and hidden_size <= _ONE_THREAD_WIDTH:
        torch.set_num_threads(1)


def uses_bf16(precision: str) -> bool:
    """Whether `auto`, `fp32` or `bf16` comes to bf16 here."""
    return precision == "bf16" or (precision == "auto" and _has_bf16())


def _has_bf16() -> bool:
    """Whether what trains here has instructions for bf16. Without them a CPU emulates it, slower than fp32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def uses_cpu(precision: str) -> bool:
    """Whether the trainer must be told to use the CPU, where it is not left to find another device.

    Several processes on CPUs are found to be several only so, and bf16 is refused without a GPU else.
    """
    return not torch.cuda.is_available() and (ranks.world_size() > 1 or uses_bf16(precision))
