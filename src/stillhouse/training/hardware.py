"""What the machine at hand decides of a training: its precision, and its threads."""

from __future__ import annotations

import torch

__all__ = ["limit_threads", "uses_bf16"]

_ONE_THREAD_WIDTH = 128
"""Hidden size up to which a CPU trains faster on one thread: the matrices are too small to share, and threads that wait
for one another spin, many times slower on a machine that does anything else."""


def limit_threads(hidden_size: int) -> None:
    """Give a small model one thread, where there is no GPU."""
    if not torch.cuda.is_available() and hidden_size <= _ONE_THREAD_WIDTH:
        torch.set_num_threads(1)


def uses_bf16(precision: str) -> bool:
    """Whether `auto`, `fp32` or `bf16` comes to bf16 here."""
    return precision == "bf16" or (precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported())
