"""Structured pruning: the units that matter least go, and the rest computes what the masked model computed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    MobileBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from stillhouse.errors import InputError
from stillhouse.models import checkpoints
from stillhouse.models.pruning import (
    Importance,
    Plan,
    Scores,
    importance,
    plan,
    prune,
    shrink,
)
from stillhouse.models.shape import own_shape
from stillhouse.models.units import encoder_matrices, sparsity
from stillhouse.objectives import hard_label_loss

HEADS, NEURONS = 4, 24
BERT: dict[str, Any] = dict(
    vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=HEADS, intermediate_size=NEURONS
)
ALBERT: dict[str, Any] = {**BERT, "embedding_size": 8}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**BERT),
    "roberta": RobertaConfig(**BERT),
    "distilbert": DistilBertConfig(vocab_size=100, dim=32, n_layers=3, n_heads=HEADS, hidden_dim=NEURONS),
    "albert": AlbertConfig(**ALBERT),
    "albert, attention shared": AlbertConfig(**ALBERT, num_hidden_groups=3, stillhouse={"layer_sharing": "attention"}),
    "albert, ffn shared": AlbertConfig(**ALBERT, num_hidden_groups=3, stillhouse={"layer_sharing": "ffn"}),
}
OUTPUTS = {
    "bert": ("attention.output.dense", "output.dense"),
    "roberta": ("attention.output.dense", "output.dense"),
    "distilbert": ("attention.out_lin", "ffn.lin2"),
    "albert": ("attention.dense", "ffn_output"),
}
"""What heads, and what neurons, are multiplied by next."""


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model of three layers and labels, in double precision, whose weights are large enough for errors to show."""
    config = copy.deepcopy(CONFIGS[request.param])
    config.num_labels = 3
    torch.manual_seed(0)
    built = checkpoints.build_model(config, "AutoModelForSequenceClassification")
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return built.double().eval()


def blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Those with weights of their own."""
    endings = tuple(f".{name}" for name in OUTPUTS[model.config.model_type])
    names = [name for name, _ in model.named_modules() if name.endswith(endings[0])]
    return [model.get_submodule(name.removesuffix(endings[0])) for name in names]


def outputs(model: PreTrainedModel, kind: str) -> list[torch.nn.Linear]:
    name = OUTPUTS[model.config.model_type][kind == "neurons"]
    return [block.get_submodule(name) for block in blocks(model)]


def batch(rows: int = 5, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (rows, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (rows,), generator=generator)}


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(**{name: value for name, value in batch().items() if name != "labels"}).logits


def some_units(model: PreTrainedModel) -> Plan:
    """Other units in each block, where blocks are not tied."""
    tied = {kind: len({id(o.weight) for o in outputs(model, kind)}) == 1 for kind in ("heads", "neurons")}
    heads = [(0, 3), (1,), (0, 1, 2)][: len(blocks(model))]
    neurons = [tuple(range(0, 24, 5)), (23,), tuple(range(7, 20))][: len(blocks(model))]
    return Plan(
        tuple(heads[0] if tied["heads"] else units for units in heads),
        tuple(neurons[0] if tied["neurons"] else units for units in neurons),
    )


def without(model: PreTrainedModel, kind: str, kept: Any) -> None:
    """Mask what is not kept: its columns in the next matrix become zero."""
    width = 8 if kind == "heads" else 1
    for output, units in zip(outputs(model, kind), kept, strict=True):
        mask = torch.zeros(output.in_features // width, dtype=torch.bool)
        mask[list(units)] = True
        with torch.no_grad():
            output.weight.mul_(mask.repeat_interleave(width))


def test_a_pruned_model_computes_what_the_masked_one_does(model: PreTrainedModel):
    chosen = some_units(model)
    before, count = logits(model), checkpoints.parameter_count(model)
    masked = copy.deepcopy(model)
    without(masked, "heads", chosen.heads)
    without(masked, "neurons", chosen.neurons)
    prune(model, chosen)
    assert torch.allclose(logits(model), logits(masked), rtol=0, atol=1e-12)
    assert (logits(model) - before).abs().max() > 1e-3
    assert own_shape(model.config)["heads"] == [len(units) for units in chosen.heads]
    for kind, kept, width in (("heads", chosen.heads, 8), ("neurons", chosen.neurons, 1)):
        assert [output.in_features for output in outputs(model, kind)] == [width * len(units) for units in kept]
        assert all(output.weight.shape == (32, output.in_features) for output in outputs(model, kind))
    # Each head is 3 x (32 x 8 + 8) + 8 x 32 parameters, and each neuron 2 x 32 + 1; tied ones count once.
    gone = sum({id(o.weight): 1048 * (4 - len(u)) for o, u in pairs(model, "heads", chosen)}.values())
    gone += sum({id(o.weight): 65 * (24 - len(u)) for o, u in pairs(model, "neurons", chosen)}.values())
    assert checkpoints.parameter_count(model) == count - gone


def pairs(model: PreTrainedModel, kind: str, chosen: Plan) -> list[tuple[torch.nn.Linear, tuple[int, ...]]]:
    return list(zip(outputs(model, kind), getattr(chosen, kind), strict=True))


def test_a_pruned_checkpoint_is_smaller_and_is_read_back(model: PreTrainedModel, tmp_path: Path):
    model.float()
    checkpoints.save_model(model, tmp_path / "whole")
    prune(model, some_units(model))
    checkpoints.save_model(model, tmp_path / "pruned")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "pruned")]
    assert sizes[1] < sizes[0] - 4000
    loaded = checkpoints.load_model(
        checkpoints.reference_for(tmp_path / "pruned"), "student", "AutoModelForSequenceClassification", {}
    )
    assert torch.equal(logits(loaded), logits(model))
    assert checkpoints.parameter_count(loaded) == checkpoints.parameter_count(model)
    # Once more: what was read back can be trained, saved and read as any other.
    loaded(**batch()).logits.sum().backward()
    checkpoints.save_model(loaded, tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_importance_is_the_mean_absolute_slope_of_each_texts_loss(model: PreTrainedModel):
    model.train()
    found = importance(model, [batch(3, seed=1), batch(2, seed=2)], hard_label_loss)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    for kind, scores, width in (("heads", found.heads, 8), ("neurons", found.neurons, 1)):
        assert sorted(block for one in scores for block in one.blocks) == list(range(len(blocks(model))))
        for one in scores:
            assert one.values.shape == (HEADS if kind == "heads" else NEURONS,)
            for unit in (0, 2):
                slope = measured_slope(model, kind, one.blocks, slice(unit * width, (unit + 1) * width))
                assert float(one.values[unit]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


def measured_slope(model: PreTrainedModel, kind: str, members: tuple[int, ...], columns: slice) -> float:
    """By difference quotients: the unit's columns a little larger, and a little smaller, in all tied blocks at once."""
    weights = {id(outputs(model, kind)[m].weight): outputs(model, kind)[m].weight for m in members}.values()
    step, losses = 1e-3, []
    for factor in (1 + step, 1 - step):
        with torch.no_grad():
            for weight in weights:
                weight[:, columns] *= factor
            of_text = []
            for part in (batch(3, seed=1), batch(2, seed=2)):
                labels = part.pop("labels")
                of_text.append(torch.nn.functional.cross_entropy(model(**part).logits, labels, reduction="none"))
            losses.append(torch.cat(of_text))
            for weight in weights:
                weight[:, columns] /= factor
    return float(((losses[0] - losses[1]) / (2 * step)).abs().mean())


def test_what_does_nothing_goes_first_and_is_not_missed(model: PreTrainedModel):
    idle = some_units(model)
    without(model, "heads", idle.heads)
    without(model, "neurons", idle.neurons)
    before = logits(model)
    found = importance(model, [batch(8)], hard_label_loss)
    tied = {one.blocks: one for one in (*found.heads, *found.neurons)}
    heads, neurons = (sum(len(one.values) for one in scores) for scores in (found.heads, found.neurons))
    kept = [
        sum(len(kept[one.blocks[0]]) for one in s)
        for s, kept in ((found.heads, idle.heads), (found.neurons, idle.neurons))
    ]
    chosen = plan(found, heads=1 - kept[0] / heads, neurons=1 - kept[1] / neurons)
    assert chosen == idle, tied
    prune(model, chosen)
    assert torch.allclose(logits(model), before, rtol=0, atol=1e-12)


def scored(*blocks: list[float]) -> tuple[Scores, ...]:
    return tuple(Scores((number,), torch.tensor(values)) for number, values in enumerate(blocks))


def test_a_plan_takes_the_least_important_and_leaves_every_block_one():
    # Divided by their norms, 50 and 5.3, the blocks have 0.60, 0.80 and 0.66, 0.75: the lowest is not the smallest.
    scaled = plan(Importance(scored([30.0, 40.0], [3.5, 4.0]), scored([1.0], [1.0])), heads=0.25)
    assert scaled == Plan(((1,), (0, 1)), ((0,), (0,)))
    # Of 0.1/1, 1/1 and three of 0.58, the three weak ones of both would go before the strong one; the best stay.
    found = Importance(scored([0.1, 1.0], [1.0, 1.1, 1.2]), scored([5.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]))
    assert plan(found, heads=0.2).heads == ((1,), (0, 1, 2))
    assert plan(found, heads=0.6).heads == ((1,), (2,))
    assert plan(found, heads=0.99).heads == ((1,), (2,))
    # 8 neurons: 0.49 of them are three, rounded down; nothing is known of the second block, of which one stays.
    assert plan(found, neurons=0.49).neurons == ((0, 1, 2, 3), (0,))
    assert plan(found, neurons=0.99).neurons == ((0,), (0,))
    assert plan(found) == Plan(((0, 1), (0, 1, 2)), ((0, 1, 2, 3), (0, 1, 2, 3)))


def test_tied_blocks_are_pruned_alike():
    one = Importance((Scores((0, 1), torch.tensor([1.0, 2.0])),), (Scores((0, 1), torch.tensor([2.0, 1.0])),))
    assert plan(one, heads=0.5, neurons=0.5) == Plan(((1,), (1,)), ((0,), (0,)))


@pytest.mark.parametrize(
    "heads, neurons",
    [
        (((0,),) * 2, ((0,),) * 3),
        (((0,), (0,), ()), ((0,),) * 3),
        (((1, 0),) * 3, ((0,),) * 3),
        (((4,),) * 3, ((0,),) * 3),
    ],
)
def test_a_plan_of_another_model_is_refused(heads: Any, neurons: Any):
    model = AutoModelForSequenceClassification.from_config(CONFIGS["bert"])
    with pytest.raises(ValueError, match="plan"):
        prune(model, Plan(heads, neurons))


def test_sizes_that_cannot_be_are_refused_all_at_once():
    model = AutoModelForSequenceClassification.from_config(CONFIGS["distilbert"])
    with pytest.raises(InputError) as caught:
        shrink(model, [4, 0, 5], [24, 24])
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "0 of 4 in block 1" in text and "5 of 4 in block 2" in text and "2 numbers, and the model 3 blocks" in text
    shrink(model, [4, 2, 1], None)
    shrink(model, [4, 2, 1], [24, 24, 1])
    shrink(model, [4, 2, 1], [24, 24, 1])
    assert [output.in_features for output in outputs(model, "neurons")] == [24, 24, 1]
    with torch.device("meta"):
        big = AutoModelForSequenceClassification.from_config(BertConfig())
    shrink(big, [3] * 12, [100] * 12)
    assert outputs(big, "heads")[11].weight.shape == (768, 192)


def test_families_that_cannot_be_pruned_are_named():
    with torch.device("meta"):
        other = AutoModelForSequenceClassification.from_config(MobileBertConfig(num_hidden_layers=1))
    with pytest.raises(InputError, match="family 'mobilebert', which cannot be pruned"):
        importance(other, [batch()], hard_label_loss)


def test_no_rows_are_no_importance():
    model = AutoModelForSequenceClassification.from_config(CONFIGS["distilbert"])
    with pytest.raises(ValueError, match="at least one batch"):
        importance(model, [], hard_label_loss)


def test_the_encoders_matrices_are_each_counted_once(model: PreTrainedModel):
    matrices = encoder_matrices(model)
    assert all(name.endswith(".weight") and value.ndim == 2 for name, value in matrices.items())
    shared = own_shape(model.config).get("layer_sharing")
    count = len(blocks(model))
    wanted = (1 if shared == "attention" else count) * 4 + (1 if shared == "ffn" else count) * 2
    assert len(matrices) == wanted
    assert sparsity(model) == 0.0
    first = next(iter(matrices.values()))
    with torch.no_grad():
        first.zero_()
    assert sparsity(model) == pytest.approx(first.numel() / sum(m.numel() for m in matrices.values()))
