"""Students of every family that is built as BERT is: with all layers kept, they compute what the teacher computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from stillhouse.errors import InputError
from stillhouse.models.albert import albert_from_bert
from stillhouse.models.bert_like import BERT_LIKE
from stillhouse.models.checkpoints import load_model, load_tokenizer, parameter_count, save_model
from stillhouse.models.distilbert import student_from_bert
from stillhouse.models.families import position_limit
from stillhouse.models.references import parse_reference

LAYERS = (1, 2, 3, 4)
CLASSIFIER = "AutoModelForSequenceClassification"


def teacher(family: str, auto_class: str = CLASSIFIER, **fields: Any) -> PreTrainedModel:
    """With weights so large that an error shows, and an epsilon that no LayerNorm could leave out unseen."""
    torch.manual_seed(0)
    padding = 0 if family == "bert" else 1
    config = transformers.AutoConfig.for_model(
        family, vocab_size=200, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=24 + (padding + 1 if padding else 0), pad_token_id=padding, type_vocab_size=2,
        layer_norm_eps=0.05, num_labels=3, **fields,
    )  # fmt: skip
    model = getattr(transformers, auto_class).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    return model


def batch(padding: int, length: int = 9) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 200, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    ids[mask == 0] = padding
    return {"input_ids": ids, "attention_mask": mask}


def assert_same_states(student: PreTrainedModel, original: PreTrainedModel, length: int) -> None:
    inputs = batch(original.config.pad_token_id, length)
    kept = inputs["attention_mask"].bool()
    with torch.no_grad():
        wanted = original(**inputs, output_hidden_states=True).hidden_states
        found = student.eval()(**inputs, output_hidden_states=True).hidden_states
    for layer, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert torch.allclose(a[kept], b[kept], atol=1e-4), f"hidden state {layer}"


@pytest.mark.parametrize("family", BERT_LIKE)
def test_a_student_of_all_layers_gives_the_teachers_hidden_states(family: str, tmp_path: Path):
    original = teacher(family)
    student = student_from_bert(original, LAYERS)
    # Up to the longest text that the teacher takes, which the student then takes too.
    assert position_limit(original.config) == position_limit(student.config) == 24
    assert_same_states(student, original, 24)
    save_model(student, tmp_path)
    loaded = load_model(parse_reference(str(tmp_path), "student"), "student", CLASSIFIER, {})
    assert_same_states(loaded, original, 9)
    assert "pooler" not in str(student) and "token_type" not in "".join(student.state_dict())


def test_the_token_type_is_folded_in_rather_than_dropped():
    original = teacher("bert")
    student = student_from_bert(original, LAYERS)
    with torch.no_grad():
        student.distilbert.embeddings.word_embeddings.weight.copy_(original.bert.embeddings.word_embeddings.weight)
    with pytest.raises(AssertionError, match="hidden state 0"):
        assert_same_states(student, original, 9)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_language_model_head_is_carried_over(family: str):
    # RoBERTa's head has GELU, whatever the config says; here both do.
    original = teacher(family, "AutoModelForMaskedLM")
    student = student_from_bert(original, LAYERS, "DistilBertForMaskedLM").eval()
    inputs = batch(original.config.pad_token_id)
    kept = inputs["attention_mask"].bool()
    with torch.no_grad():
        wanted = original(**inputs).logits[kept].log_softmax(-1)
        found = student(**inputs).logits[kept].log_softmax(-1)
    assert torch.allclose(found, wanted, atol=1e-3)
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight
    # A teacher without such a head leaves the student's as it is, and a student may go without any.
    student_from_bert(teacher(family), LAYERS, "DistilBertForMaskedLM")
    assert student_from_bert(teacher(family), (2, 4), "DistilBertModel").config.n_layers == 2


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("sharing", ["none", "attention", "ffn"])
def test_an_alberts_own_parts_are_copied_from_the_layers_it_follows(family: str, sharing: str, tmp_path: Path):
    original = teacher(family)
    student, _ = albert_from_bert(original, embedding_size=8, layers=2, layer_sharing=sharing)
    blocks = [group.albert_layers[0] for group in student.albert.encoder.albert_layer_groups]
    layers = original.base_model.encoder.layer
    for block, followed in zip(blocks, (layers[1], layers[3]), strict=True):
        attention, ffn = (layers[3] if sharing == part else followed for part in ("attention", "ffn"))
        assert torch.equal(block.attention.query.weight, attention.attention.self.query.weight)
        assert torch.equal(block.ffn_output.bias, ffn.output.dense.bias)
    if sharing == "attention":
        assert blocks[0].attention.query.weight is blocks[1].attention.query.weight
    pooled = original.bert.pooler.dense if family == "bert" else original.classifier.dense
    assert torch.equal(student.albert.pooler.weight, pooled.weight)
    assert position_limit(student.config) == 24
    save_model(student, tmp_path)
    loaded = load_model(parse_reference(str(tmp_path), "albert"), "albert", CLASSIFIER, {})
    assert parameter_count(loaded) == parameter_count(student)
    inputs = batch(original.config.pad_token_id, 24)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, student.eval()(**inputs).logits)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_albert_that_shares_nothing_has_the_teachers_encoder_and_head(family: str):
    original = teacher(family)
    student, _ = albert_from_bert(original, embedding_size=8, layer_sharing="none")
    student.eval()
    ids = batch(original.config.pad_token_id)["input_ids"][:1]
    with torch.no_grad():
        wanted = original(ids, output_hidden_states=True)
        state = wanted.hidden_states[0]
        for group in student.albert.encoder.albert_layer_groups:
            state = group(state)
        assert torch.allclose(state, wanted.hidden_states[-1], atol=1e-4)
        pooled = student.albert.pooler_activation(student.albert.pooler(state[:, 0]))
        assert torch.allclose(student.classifier(pooled), wanted.logits, atol=1e-4)


def test_a_pruned_teacher_is_refused():
    original = teacher("bert")
    original.config.stillhouse = {"heads": [2, 2, 2, 2]}
    with pytest.raises(InputError, match="teacher: has heads or neurons pruned away"):
        student_from_bert(original, (2, 4))


@pytest.mark.slow
def test_a_student_of_all_of_minilms_layers_gives_its_hidden_states():
    reference = parse_reference("minilm://", "teacher")
    original = load_model(reference, "teacher", CLASSIFIER, {"num_labels": 2})
    student = student_from_bert(original, (1, 2, 3, 4, 5, 6)).eval()
    tokenizer = load_tokenizer(reference, "teacher")
    inputs = tokenizer(["A fine day.", "It rained, and we stayed in."], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids")
    kept = inputs["attention_mask"].bool()
    with torch.no_grad():
        wanted = original(**inputs, output_hidden_states=True).hidden_states
        found = student(**inputs, output_hidden_states=True).hidden_states
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a[kept], b[kept], atol=1e-4)
