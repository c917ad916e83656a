"""Students made from a teacher: what is copied computes what it computed before."""

import copy
from typing import Any

import pytest
import torch
from transformers import AlbertForSequenceClassification, BertConfig, BertForSequenceClassification

from stillhouse.errors import InputError
from stillhouse.models.albert import Factorisation, albert_from_bert, evenly_spaced_layers, factorise
from stillhouse.models.checkpoints import parameter_count
from stillhouse.models.distilbert import alternate_layers, parse_layers, student_from_bert


@pytest.fixture(scope="module")
def teacher() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, num_labels=3
    )
    model = BertForSequenceClassification(config).eval()
    for parameter in model.parameters():  # the initial weights are so small that an error would hide
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 200, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_alternate_layers_end_with_the_last():
    assert alternate_layers(12) == (2, 4, 6, 8, 10, 12)
    assert alternate_layers(6) == (2, 4, 6)
    assert alternate_layers(3) == (1, 3)


@pytest.mark.parametrize("text", ["0,2", "2,2", "4,2", "a", "2,7", "1;2"])
def test_layers_that_the_teacher_lacks_are_refused(text: str):
    with pytest.raises(InputError) as caught:
        parse_layers(text, 6)
    assert [p.where for p in caught.value.problems] == ["distill_layers"]


def test_a_student_of_all_layers_gives_the_teachers_hidden_states(teacher: BertForSequenceClassification):
    # With every layer copied and the token type folded in, the encoder must compute exactly what the teacher's does.
    student = student_from_bert(teacher, (1, 2, 3, 4)).eval()
    with torch.no_grad():
        wanted = teacher(**batch(), output_hidden_states=True).hidden_states
        found = student(**batch(), output_hidden_states=True).hidden_states
    kept = batch()["attention_mask"].bool()
    for layer, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert torch.allclose(a[kept], b[kept], atol=1e-4), f"hidden state {layer}"


def test_a_student_holds_the_chosen_layers_and_no_pooler_or_token_types(teacher: BertForSequenceClassification):
    student = student_from_bert(teacher, (2, 4))
    names = "".join(student.state_dict())
    assert "pooler" not in names
    assert "token_type" not in names
    layers = student.distilbert.transformer.layer
    assert len(layers) == 2
    for block, number in zip(layers, (2, 4), strict=True):
        original = teacher.bert.encoder.layer[number - 1]
        assert torch.equal(block.ffn.lin1.weight, original.intermediate.dense.weight)
        assert torch.equal(block.attention.out_lin.bias, original.attention.output.dense.bias)
    assert student.config.num_labels == 3


def test_distilbert_of_bert_base_has_40_percent_fewer_parameters():
    with torch.device("meta"):
        teacher = BertForSequenceClassification(BertConfig())
    with torch.device("meta"):
        student = student_from_bert(teacher, alternate_layers(12))
    assert parameter_count(student) == pytest.approx(66_955_010, abs=1000)
    assert 1 - parameter_count(student) / parameter_count(teacher) == pytest.approx(0.4, abs=0.02)


def test_a_teacher_of_another_family_is_refused():
    from transformers import ElectraConfig, ElectraForSequenceClassification

    with torch.device("meta"):
        other = ElectraForSequenceClassification(ElectraConfig(num_hidden_layers=2))
    for surgery in (lambda: student_from_bert(other, (2,)), lambda: albert_from_bert(other, embedding_size=8)):
        with pytest.raises(InputError, match="family 'electra'"):
            surgery()


def test_factorise_is_the_truncated_svd():
    matrix = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    factors = factorise(matrix, 5)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    best = u[:, :5] @ torch.diag(s[:5]) @ v[:5]
    assert torch.allclose(matrix @ factors.basis @ factors.basis.T, best, atol=1e-4)
    assert factors.energy == pytest.approx(float((s[:5] ** 2).sum() / (s**2).sum()), abs=1e-5)
    assert factorise(matrix, 12).energy == pytest.approx(1.0)


def test_factorise_keeps_more_of_what_weighs_more():
    matrix = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(50)
    weights[:4] = 1000.0

    def kept(factors: Factorisation) -> float:
        rows = matrix[:4]
        return float(((rows @ factors.basis) ** 2).sum() / (rows**2).sum())

    assert kept(factorise(matrix, 4, weights)) > 0.99 > kept(factorise(matrix, 4))


def embedding_error(teacher: BertForSequenceClassification, size: int, **given: Any) -> float:
    """Mean squared difference of the factorised embeddings, by the variance of the teacher's."""
    student, _ = albert_from_bert(teacher, embedding_size=size, **given)
    inputs = batch()
    with torch.no_grad():
        wanted = teacher.bert.embeddings(inputs["input_ids"])
        embedded = student.albert.embeddings(inputs["input_ids"])
        found = student.albert.encoder.embedding_hidden_mapping_in(embedded)
    return float(((found - wanted) ** 2).mean() / wanted.var())


def test_an_albert_of_full_embedding_size_starts_close_to_the_teachers_embeddings(
    teacher: BertForSequenceClassification,
):
    assert embedding_error(teacher, 32) < 0.02
    assert embedding_error(teacher, 32) < embedding_error(teacher, 16) < embedding_error(teacher, 4) < 1.0


def test_an_albert_keeps_the_directions_of_positions_too(teacher: BertForSequenceClassification):
    teacher = copy.deepcopy(teacher)
    old = teacher.bert.embeddings
    with torch.no_grad():
        # Positions in three directions, and words in the others.
        old.word_embeddings.weight[:, 29:] = 0
        old.position_embeddings.weight[:, :29] = 0
        old.position_embeddings.weight[:, 29:] *= 5
    assert embedding_error(teacher, 20) < 0.15  # 0.45 by the directions of the words alone


def test_the_mapping_suits_frequent_words_at_all_positions(teacher: BertForSequenceClassification):
    counts = torch.zeros(teacher.config.vocab_size)
    counts[batch()["input_ids"].unique()] = 1000.0
    assert embedding_error(teacher, 24, token_counts=counts) < 0.15  # 0.34 where each is looked at in one position


def test_an_albert_shares_one_block_and_keeps_pooler_and_classifier(teacher: BertForSequenceClassification):
    student, energy = albert_from_bert(teacher, embedding_size=8)
    assert isinstance(student, AlbertForSequenceClassification)
    assert 0 < energy < 1
    assert student.config.num_hidden_layers == 4
    assert len(student.albert.encoder.albert_layer_groups) == 1
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert torch.equal(student.albert.pooler.weight, teacher.bert.pooler.dense.weight)
    block = student.albert.encoder.albert_layer_groups[0].albert_layers[0]
    assert torch.equal(block.ffn.weight, teacher.bert.encoder.layer[-1].intermediate.dense.weight)


def test_an_albert_may_apply_its_block_less_often(teacher: BertForSequenceClassification):
    student, _ = albert_from_bert(teacher, embedding_size=8, layers=2)
    with torch.no_grad():
        states = student(**batch(), output_hidden_states=True).hidden_states
    assert len(states) == 1 + 2
    assert parameter_count(student) == parameter_count(albert_from_bert(teacher, embedding_size=8)[0])


def test_layers_are_followed_at_the_same_share_of_the_depth():
    assert evenly_spaced_layers(3, 6) == (2, 4, 6)
    assert evenly_spaced_layers(6, 6) == (1, 2, 3, 4, 5, 6)
    assert evenly_spaced_layers(4, 6) == (2, 3, 5, 6)
    assert evenly_spaced_layers(8, 6)[-1] == 6


@pytest.mark.parametrize("size", [0, 33])
def test_an_embedding_size_beyond_the_teachers_is_refused(teacher: BertForSequenceClassification, size: int):
    with pytest.raises(InputError, match="albert_embedding_size"):
        albert_from_bert(teacher, embedding_size=size)
