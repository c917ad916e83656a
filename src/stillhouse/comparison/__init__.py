"""What models cost and give, side by side: sizes, arithmetic, speed, memory, quality, and which to take for what."""

from stillhouse.comparison.compare import compare
from stillhouse.comparison.config import CompareConfig

__all__ = ["CompareConfig", "compare"]
