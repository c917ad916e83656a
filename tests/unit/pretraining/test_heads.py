"""What an objective trains, and that the head at masked positions says what the whole model says there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_corpus import ALBERT, SCRATCH
from transformers import AutoTokenizer, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from stillhouse.pretraining import PretrainConfig
from stillhouse.pretraining.heads import LanguageModel, head_parts
from stillhouse.pretraining.models import build_model
from stillhouse.pretraining.trainer import LanguageLoss, Objective, TripleLoss

DISTILBERT = "scratch://distilbert?n_layers=2&dim=32&n_heads=2&hidden_dim=64&dropout=0&attention_dropout=0"


def config(**changes: Any) -> PretrainConfig:
    return PretrainConfig(**{"model": SCRATCH, "objective": "mlm", **changes})


@pytest.fixture
def build(corpus: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    return lambda text, objective="mlm": build_model(config(model=text, objective=objective), tokenizer)


def batch(*, types: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (3, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    found: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "positions": torch.tensor([1, 4, 12, 29])}
    found |= {"targets": torch.tensor([7, 8, 9, 10]), "labels": torch.tensor([0, 1, 1])}
    found["shares"] = {"masked": 1.0, "tokens": 1.0}
    return {**found, "token_type_ids": (torch.arange(10) > 4).long().expand(3, 10)} if types else found


@pytest.mark.parametrize("text", [SCRATCH, ALBERT, DISTILBERT])
def test_the_head_sees_masked_positions_alone_and_says_the_same_of_them(text: str, build: Any):
    model = build(text).eval()
    given = batch(types=text != DISTILBERT)
    inputs = {name: given[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in given}
    with torch.no_grad():
        whole = model(**inputs, output_hidden_states=True)
        found = LanguageModel(model)(given, states=True)
        again = model(**inputs)
    parts = head_parts(model)
    assert parts is not None
    expected = whole[parts.logits].flatten(0, 1)[given["positions"]]
    assert found.language.shape == (4, model.config.vocab_size)
    assert torch.allclose(found.language, expected, atol=1e-6)
    assert found.states is not None and len(found.states) == 3
    assert (found.sentence is None) == (text == DISTILBERT)
    # The model itself is as it was.
    assert torch.equal(again[parts.logits], whole[parts.logits])


def test_a_roberta_has_a_head_too():
    model = RobertaForMaskedLM(
        RobertaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    ).eval()
    given = batch(types=False)
    with torch.no_grad():
        whole = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
        found = LanguageModel(model)(given)
    assert torch.allclose(found.language, whole.flatten(0, 1)[given["positions"]], atol=1e-6)


def teacher() -> Any:
    from transformers import BertConfig

    shape = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(**shape, intermediate_size=64))


OBJECTIVES: dict[str, tuple[str, Any]] = {
    "bert-mlm": (SCRATCH, lambda model: LanguageLoss(model)),
    "bert-pairs": (SCRATCH, lambda model: LanguageLoss(model, sentence_weight=1.0)),
    "bert-head": (SCRATCH, lambda model: LanguageLoss(model, head_only=True)),
    "albert-mlm": (ALBERT, lambda model: LanguageLoss(model)),
    "albert-pairs": (ALBERT, lambda model: LanguageLoss(model, sentence_weight=1.0)),
    "distilbert-mlm": (DISTILBERT, lambda model: LanguageLoss(model)),
    **{
        f"triple-{kept}": (
            DISTILBERT,
            lambda model, kept=kept: TripleLoss(
                model, teacher(), (1, 3), config(**{f"{n}_weight": float(n in kept) for n in ("ce", "mlm", "cosine")})
            ),
        )
        for kept in ("ce", "mlm", "cosine", "ce mlm cosine")
    },
    "triple-albert": (ALBERT, lambda model: TripleLoss(model, teacher(), (1, 3), config())),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_weight_that_may_learn_is_reached_by_the_loss(name: str, build: Any):
    """Several processes wait for the gradient of each, and weight decay shrinks what has none."""
    text, make = OBJECTIVES[name]
    model = build(text, "mlm")
    objective: Objective = make(model)
    terms = objective.terms(batch(types=text != DISTILBERT), None)
    assert terms.keys() == objective.weights.keys()
    sum(objective.weights[term] * value for term, value in terms.items()).backward()
    for weight, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, weight
    trained = {weight for weight, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    if name == "bert-head":
        assert all(weight.startswith("cls.predictions.") for weight in trained)
    if name.endswith("mlm") or name == "triple-albert":
        assert not any("pooler" in w or "seq_relationship" in w or "sop_classifier" in w for w in trained)


def test_shares_weigh_the_terms(build: Any):
    given = batch(types=False)
    model = build(DISTILBERT)
    objective = TripleLoss(model, teacher(), (1, 3), config())
    plain = {name: value.item() for name, value in objective.terms(given, None).items()}
    found = objective.terms({**given, "shares": {"masked": 2.0, "tokens": 0.5}}, None)
    factors = {"ce_loss": 2.0, "mlm_loss": 2.0, "cosine_loss": 0.5}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: factors[name] * value for name, value in plain.items()}
    )
