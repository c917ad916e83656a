"""What differs between families: how many tokens they take, how BART reads its end tokens, what is not a classifier."""

from pathlib import Path

import pytest
import torch
from family_checkpoints import FAMILIES, POSITIONS, write_checkpoint
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartForSequenceClassification,
    GPT2Config,
    MobileBertConfig,
    RobertaConfig,
    ViTConfig,
    XLNetConfig,
)

from stillhouse.data.demo import reviews
from stillhouse.errors import InputError
from stillhouse.models.checkpoints import (
    build_model,
    check_reference,
    load_config,
    load_model,
    load_tokenizer,
    reference_for,
)
from stillhouse.models.families import classifies, position_limit

AUTO = "AutoModelForSequenceClassification"
TEXTS = [text for text, _ in reviews(120, seed=3)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: write_checkpoint(root / family, family, TEXTS) for family in (*FAMILIES, "xlnet")}


def test_what_was_saved_in_16_bits_is_worked_on_in_32(checkpoints: dict[str, Path], tmp_path: Path):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"]).half()
    model.save_pretrained(tmp_path)
    reference = reference_for(tmp_path)
    assert build_model(load_config(reference, "m"), AUTO).dtype == torch.float32
    loaded = load_model(reference, "m", AUTO, {})
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.config.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_the_position_limit_is_the_longest_text_that_the_model_takes(checkpoints: dict[str, Path], family: str):
    folder = checkpoints[family]
    config = AutoConfig.from_pretrained(folder)
    assert position_limit(config) == POSITIONS
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for length in (POSITIONS, POSITIONS + 1):
        ids = torch.tensor([[tokenizer.cls_token_id, *[9] * (length - 2), tokenizer.sep_token_id]])
        try:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        except (IndexError, RuntimeError):
            assert length > POSITIONS, "the limit is too high"
        else:
            # ModernBERT computes its positions, so that its limit is what it was trained on.
            assert torch.isfinite(logits).all() and (length == POSITIONS or family == "modernbert")


def test_what_counts_positions_otherwise():
    assert position_limit(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert position_limit(MobileBertConfig(max_position_embeddings=512)) == 512
    assert position_limit(XLNetConfig()) is None


def test_a_text_too_long_for_a_candidate_is_told_before_the_training(checkpoints: dict[str, Path]):
    for family, folder in checkpoints.items():
        assert check_reference(str(folder), "extra_candidates", max_length=POSITIONS, auto_class=AUTO) == []
        found = check_reference(str(folder), "extra_candidates", max_length=POSITIONS + 1, auto_class=AUTO)
        assert [problem.where for problem in found] == ([] if family == "xlnet" else ["max_length"])
        assert family == "xlnet" or f"Give at most {POSITIONS}" in found[0].remedy


def test_a_family_without_such_a_head_is_told(tmp_path: Path):
    assert classifies(RobertaConfig(), AUTO) and classifies(GPT2Config(), AUTO)
    assert not classifies(ViTConfig(), AUTO)
    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (problem,) = check_reference(str(tmp_path), "extra_candidates", auto_class=AUTO)
    assert "'vit', which has no head of that kind" in problem.what


def test_bart_answers_as_transformers_does_and_takes_struck_out_words(checkpoints: dict[str, Path]):
    folder = checkpoints["bart"]
    original = BartForSequenceClassification.from_pretrained(folder).eval()
    adapted = load_model(reference_for(folder), "bart", AUTO, {}).eval()
    tokenizer = load_tokenizer(reference_for(folder), "bart")
    with torch.no_grad():
        batch = tokenizer(TEXTS[:9], padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt")
        torch.testing.assert_close(adapted(**batch).logits, original(**batch).logits)
        texts = ["a <s>good</s> bad film", "a good film"]
        mixed = tokenizer(texts, padding=True, return_tensors="pt")
        with pytest.raises(ValueError, match="same number of <eos>"):
            original(**mixed)
        alone = [original(**tokenizer([text], return_tensors="pt")).logits for text in texts]
        torch.testing.assert_close(adapted(**mixed).logits, torch.cat(alone))
        # What a server is warmed up with has no end token at all.
        assert torch.isfinite(adapted(input_ids=torch.zeros(1, 7, dtype=torch.int64)).logits).all()


def test_a_tokenizer_without_padding_is_refused(checkpoints: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "no-pad"
    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["modernbert"])
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="no padding token"):
        load_tokenizer(reference_for(folder), "gpt")
