"""Parameters and arithmetic of an architecture, counted on the meta device: nothing is allocated or loaded.

What is counted is the body: embeddings, layers and pooler, without the head of any task, as the papers count.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, Problem
from stillhouse.models import checkpoints

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["BYTES_PER_PARAMETER", "Count", "count", "part_of"]

BYTES_PER_PARAMETER = 4
"""FP32."""


_TABLES = ("mask_emb", "shared.weight")
"""Tables of embeddings that are not called so: XLNet's, BART's."""


@dataclass(frozen=True)
class Count:
    """Parameters; those shared by several layers, or tied, count once."""

    parameters: int
    embedding: int
    """Word, position and token-type tables, their LayerNorm, and what maps them to the layers' width."""
    encoder: int
    """The layers; of an encoder-decoder, both stacks."""
    pooler: int
    """Whatever else the body has: the dense layer that reads the first token, where there is one."""
    flops: int | None
    """Floating-point operations of one sentence: 2 for each multiply-add of every matrix product, attention's included,
    in a forward pass of batch 1; what is not a matrix product is left out, as is usual. None where the family's code
    cannot be run on shapes alone."""


def part_of(name: str) -> str:
    """`embedding`, `encoder` or `pooler`, from a parameter's name in the body of any family."""
    parts = name.split(".")
    # What stands inside a numbered layer is that layer's, whatever it is called there.
    if any(part.isdecimal() for part in parts):
        return "encoder"
    if any("embed" in part for part in parts) or name in _TABLES:
        return "embedding"
    return "pooler" if parts[0] == "pooler" else "encoder"


def count(config: PretrainedConfig, length: int, where: str, name: str) -> Count:
    """Count an architecture.

    Args:
        config: of the architecture; its field `stillhouse` (pruned heads, shared parts) is heeded.
        length: tokens of the sentence for `flops`.
        where: what a problem is filed under.
        name: the model's name, for the problem's words.

    Raises:
        InputError: the config describes no model, for example since its heads do not divide the hidden size.
    """
    try:
        body = _on_meta(config, where)
    except InputError as error:
        raise InputError(Problem(where, f"{name}: {p.what}", p.remedy) for p in error.problems) from None
    except Exception as error:  # each family checks its fields in its own way
        what = f"{name} describes no model ({' '.join(str(error).split())[:200]})."
        raise InputError(Problem(where, what, "Correct the config's fields.")) from None
    sizes = {"embedding": 0, "encoder": 0, "pooler": 0}
    for parameter_name, parameter in body.named_parameters():
        sizes[part_of(parameter_name)] += parameter.numel()
    return Count(sum(sizes.values()), **sizes, flops=_flops(body, length))


def _on_meta(config: PretrainedConfig, where: str) -> Any:
    import torch

    config = copy.deepcopy(config)
    # Eager attention is made of matrix products that can be counted.
    config._attn_implementation = "eager"
    with torch.device("meta"):
        # XLNet makes some of its parameters elsewhere all the same.
        return checkpoints.build_model(config, "AutoModel", where).to("meta").eval()


def _flops(body: Any, length: int) -> int | None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), torch.device("meta"), counter:
            body(input_ids=torch.zeros((1, length), dtype=torch.long))
    except Exception:  # code that asks for a tensor's values has none here
        return None
    return int(counter.get_total_flops())
