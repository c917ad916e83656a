"""Parameters and FLOPs, against counts by hand and the papers' numbers."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModel

from stillhouse.comparison.counting import Count, count, part_of
from stillhouse.comparison.subjects import parse_subject
from stillhouse.errors import InputError
from stillhouse.models.named import NAMED, PUBLISHED

TINY = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


def count_of(name: str) -> Count:
    return count(parse_subject(name).config, 128, "MODEL", name)


@pytest.fixture(scope="module")
def papers() -> dict[str, Count]:
    return {name: count_of(name) for name in NAMED}


def test_a_tiny_bert_by_hand() -> None:
    config = AutoConfig.for_model("bert", **TINY, num_hidden_layers=3, max_position_embeddings=40)
    found = count(config, 10, "MODEL", "tiny")
    v, h, f, p = 50, 16, 24, 40
    assert found.embedding == (v + p + 2) * h + 2 * h
    assert found.encoder == 3 * (4 * (h * h + h) + 2 * h + (h * f + f) + (f * h + h) + 2 * h)
    assert found.pooler == h * h + h
    assert found.parameters == found.embedding + found.encoder + found.pooler
    s = 10
    # Four projections and two FFN matrices for each token, scores and their sum for each pair, the pooler for one.
    assert found.flops == 3 * (2 * s * (4 * h * h + 2 * h * f) + 2 * 2 * s * s * h) + 2 * h * h


def test_a_tiny_albert_counts_the_shared_block_once_and_the_mapping_as_embedding() -> None:
    fields = {**TINY, "embedding_size": 8, "max_position_embeddings": 40}
    one, six = (
        count(AutoConfig.for_model("albert", **fields, num_hidden_layers=layers), 10, "MODEL", "tiny")
        for layers in (1, 6)
    )
    assert one.parameters == six.parameters
    assert one.embedding == (50 + 40 + 2) * 8 + 2 * 8 + (8 * 16 + 16)
    assert one.encoder == 4 * (16 * 16 + 16) + 2 * 16 + (16 * 24 + 24) + (24 * 16 + 16) + 2 * 16
    assert one.flops is not None and six.flops is not None
    mapping_and_pooler = 2 * 10 * 8 * 16 + 2 * 16 * 16
    assert six.flops - mapping_and_pooler == 6 * (one.flops - mapping_and_pooler)


@pytest.mark.parametrize(
    ("name", "rounding", "expected"),
    [
        ("bert-base", 10, 110),
        ("bert-large", 10, 340),
        ("distilbert-base", 1, 66),
        ("albert-base", 1, 12),
        ("albert-large", 1, 18),
        ("albert-xlarge", 10, 60),
    ],
)
def test_the_papers_counts_to_their_rounding(papers: dict[str, Count], name: str, rounding: int, expected: int) -> None:
    assert rounding * round(papers[name].parameters / 1e6 / rounding) == expected
    assert PUBLISHED[name].parameters == expected * 1_000_000


def test_the_one_count_that_rounding_does_not_explain_is_said_to_be_so(papers: dict[str, Count]) -> None:
    assert papers["albert-xxlarge"].parameters == 222_595_584
    assert PUBLISHED["albert-xxlarge"].parameters == 235_000_000
    assert "222.6M" in PUBLISHED["albert-xxlarge"].note


def test_what_factorisation_and_sharing_save(papers: dict[str, Count]) -> None:
    bert, albert = papers["bert-base"], papers["albert-base"]
    assert 1 - albert.embedding / bert.embedding >= 0.8
    assert 1 - albert.encoder / bert.encoder >= 0.7
    # The same layers are applied as often, so sharing saves no arithmetic.
    assert albert.flops == pytest.approx(bert.flops, rel=0.01)
    assert papers["distilbert-base"].flops == pytest.approx(bert.flops / 2, rel=0.01)


def test_sharing_in_part_counts_what_is_shared_once() -> None:
    base = "scratch://albert?vocab_size=50&embedding_size=8&hidden_size=16&num_attention_heads=2&intermediate_size=24"
    counts = {
        sharing: count_of(f"{base}&num_hidden_layers=3&layer_sharing={sharing}").encoder
        for sharing in ("all", "attention", "ffn", "none")
    }
    attention = 4 * (16 * 16 + 16) + 2 * 16
    ffn = (16 * 24 + 24) + (24 * 16 + 16) + 2 * 16
    assert counts == {
        "all": attention + ffn,
        "attention": attention + 3 * ffn,
        "ffn": 3 * attention + ffn,
        "none": 3 * (attention + ffn),
    }


FAMILIES = {
    "roberta": {**TINY, "num_hidden_layers": 2, "max_position_embeddings": 42},
    "distilbert": {"vocab_size": 50, "dim": 16, "n_heads": 2, "hidden_dim": 24, "n_layers": 2},
    "mobilebert": {**TINY, "num_hidden_layers": 2, "embedding_size": 8, "intra_bottleneck_size": 16,
                   "true_hidden_size": 16},
    "bart": {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40},
    "modernbert": {**TINY, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                   "cls_token_id": 1, "sep_token_id": 2},
    "xlnet": {"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_counted_whole(family: str) -> None:
    config = AutoConfig.for_model(family, **FAMILIES[family])
    found = count(config, 12, "MODEL", family)
    model = AutoModel.from_config(config)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    words = model.get_input_embeddings().weight.numel()
    assert words <= found.embedding < found.parameters
    assert found.encoder > 0
    assert found.flops is not None and found.flops > 0


def test_parts_by_name() -> None:
    assert part_of("encoder.embedding_hidden_mapping_in.weight") == "embedding"
    assert part_of("layer.0.rel_attn.seg_embed") == "encoder"
    assert part_of("pooler.dense.bias") == "pooler"


def test_what_describes_no_model_is_a_problem() -> None:
    config = AutoConfig.for_model("bert", hidden_size=30, num_attention_heads=4)
    with pytest.raises(InputError, match="describes no model") as caught:
        count(config, 8, "MODEL", "'odd'")
    assert caught.value.problems[0].where == "MODEL"
