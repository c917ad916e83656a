"""Shapes that a transformers config cannot express.

A model of such a shape says so in its config's field `stillhouse`, a dict that `config.json` keeps:

    layer_sharing    "attention" or "ffn": what all layers of an ALBERT share, while the other part is each layer's own
    heads, neurons   attention heads and feed-forward neurons of each layer, where some were pruned away
    layer_norm_eps   of every LayerNorm, where the family has a fixed one (DistilBERT)

The classes of transformers know nothing of the field: they would build such a model in the plain shape, and fill what
is not in the file with random weights. `stillhouse.models.checkpoints.load_model` therefore builds it with
`apply_shape`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, Problem

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["FIELD", "PARTIAL_SHARING", "apply_shape", "own_shape", "set_shape", "shape_problems"]

FIELD = "stillhouse"
"""Name of the config's field."""
PARTIAL_SHARING = ("attention", "ffn")
"""The parts of a block that the layers of an ALBERT may share alone."""
_KEYS = ("layer_sharing", "heads", "neurons", "layer_norm_eps")


def own_shape(config: PretrainedConfig) -> dict[str, Any]:
    """A copy of what the config says of the model's own shape; empty where it has none."""
    return dict(getattr(config, FIELD, None) or {})


def set_shape(config: PretrainedConfig, **entries: Any) -> None:
    """Note entries of the shape in the config, beside those that are there."""
    setattr(config, FIELD, {**own_shape(config), **entries})


def shape_problems(config: PretrainedConfig, parameter: str) -> list[Problem]:
    """What is wrong with the config's own shape, for the checkpoint given as `parameter`."""
    value = getattr(config, FIELD, None)
    if not value:
        return []
    if not isinstance(value, dict) or set(value) - set(_KEYS):
        return [
            Problem(parameter, f"its config has {FIELD} = {value!r}, which this release does not understand.",
                    "Use the release that made the checkpoint.")
        ]  # fmt: skip
    found = []

    def wrong(key: str, why: str) -> None:
        remedy = "Correct config.json, or make the checkpoint again."
        found.append(Problem(parameter, f"its config has {FIELD}.{key} = {value[key]!r}, {why}.", remedy))

    if "layer_sharing" in value:
        if value["layer_sharing"] not in PARTIAL_SHARING:
            wrong("layer_sharing", f"which is none of {', '.join(PARTIAL_SHARING)}")
        elif config.model_type != "albert":
            wrong("layer_sharing", f"and a model of the family {config.model_type!r} shares no layers")
        elif config.num_hidden_groups != config.num_hidden_layers:
            wrong("layer_sharing", "which needs as many hidden groups as layers")
    for key in ("heads", "neurons"):
        if key in value:
            counts = value[key]
            if not isinstance(counts, list) or not all(isinstance(n, int) and n > 0 for n in counts):
                wrong(key, "which is no list of whole numbers from 1")
            elif value.get("layer_sharing") == {"heads": "attention", "neurons": "ffn"}[key] and len(set(counts)) > 1:
                wrong(key, "though all layers share that part")
    epsilon = value.get("layer_norm_eps", 1.0)
    if not isinstance(epsilon, int | float) or not 0 < epsilon <= 1:
        wrong("layer_norm_eps", "which is no number above 0")
    return found


def apply_shape(model: PreTrainedModel, parameter: str = "checkpoint") -> PreTrainedModel:
    """Give a freshly built `model` the shape of its own that its config names, and return it; idempotent.

    Works on the meta device too.

    Raises:
        InputError: the config names no such shape; the problem's place is `parameter`.
    """
    import torch

    if problems := shape_problems(model.config, parameter):
        raise InputError(problems)
    shape = own_shape(model.config)
    if "heads" in shape or "neurons" in shape:
        from stillhouse.models.pruning import shrink  # type: ignore[import-not-found, unused-ignore]

        shrink(model, shape.get("heads"), shape.get("neurons"))
    if "layer_norm_eps" in shape:
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = float(shape["layer_norm_eps"])
    if "layer_sharing" in shape:
        from stillhouse.models.albert import tie_layers

        # Last: what is shared is tied as it then is.
        tie_layers(model, shape["layer_sharing"])
    return model
