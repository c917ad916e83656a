"""Names of checkpoints, and what is wrong with them."""

from pathlib import Path

import pytest
from transformers import AlbertConfig, AlbertForSequenceClassification, BertConfig, BertForSequenceClassification

from stillhouse.data.demo import reviews
from stillhouse.errors import InputError
from stillhouse.models.checkpoints import check_reference, load_config, load_model, model_from_scratch, train_tokenizer
from stillhouse.models.references import parse_reference

TINY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    BertForSequenceClassification(BertConfig(**TINY)).save_pretrained(root / "bert")
    AlbertForSequenceClassification(AlbertConfig(**TINY)).save_pretrained(root / "albert")
    (root / "empty").mkdir()
    (root / "pickled").mkdir()
    BertConfig(**TINY).save_pretrained(root / "pickled")
    (root / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    return root


def test_the_forms():
    assert parse_reference("teacher://", "albert").kind == "teacher"
    hub = parse_reference("hub://owner/name@v1", "teacher")
    assert (hub.kind, hub.location, hub.revision) == ("hub", "owner/name", "v1")
    scratch = parse_reference("scratch://bert?num_hidden_layers=2&hidden_act=relu", "teacher")
    assert (scratch.family, scratch.fields) == ("bert", {"num_hidden_layers": 2, "hidden_act": "relu"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no checkpoint folder"),
        ("/nowhere", "no checkpoint folder"),
        ("hub://a/b/c", "does not name a hub checkpoint"),
        ("scratch://gpt2", "no known family"),
        ("ftp://x", "not a checkpoint name"),
    ],
)
def test_what_is_not_a_checkpoint_is_refused_by_parameter(text: str, says: str):
    with pytest.raises(InputError, match=says) as caught:
        parse_reference(text, "teacher")
    assert caught.value.problems[0].where == "teacher"


def test_folders_without_config_or_with_pickled_weights_are_refused(checkpoints: Path):
    with pytest.raises(InputError, match=r"no config\.json"):
        parse_reference(str(checkpoints / "empty"), "teacher")
    with pytest.raises(InputError, match="never read"):
        parse_reference(str(checkpoints / "pickled"), "teacher")


def test_the_family_must_fit_the_role(checkpoints: Path):
    assert check_reference(str(checkpoints / "bert"), "teacher") == []
    assert check_reference(str(checkpoints / "albert"), "albert") == []
    (problem,) = check_reference(str(checkpoints / "bert"), "albert")
    assert "'bert'" in problem.what
    (problem,) = check_reference(str(checkpoints / "albert"), "teacher")
    assert problem.where == "teacher"
    assert check_reference("teacher://", "albert") == []
    assert check_reference("teacher://", "teacher") != []


def test_scratch_fields_are_checked():
    assert check_reference("scratch://bert?hidden_size=32&num_attention_heads=2", "teacher") == []
    assert "hidden_sise" in check_reference("scratch://bert?hidden_sise=32", "teacher")[0].what
    assert check_reference("scratch://bert?hidden_size=30&num_attention_heads=4", "teacher") != []


def test_a_hub_that_cannot_be_reached_is_one_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (problem,) = check_reference("hub://nobody/nothing", "teacher")
    assert "cannot be loaded" in problem.what
    assert problem.remedy


def test_a_head_of_another_size_is_replaced(checkpoints: Path):
    reference = parse_reference(str(checkpoints / "bert"), "teacher")
    model = load_model(reference, "teacher", "AutoModelForSequenceClassification", {"num_labels": 5})
    assert model.classifier.out_features == 5


def test_equal_texts_make_equal_vocabularies():
    texts = [text for text, _ in reviews(100, seed=1)]
    first, second = (train_tokenizer(iter(texts), 300, 32) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    # A piece of the vocabulary that stands in a text is text, not that piece.
    assert "##s" in first.get_vocab() and "##s" not in first.tokenize("a ##s")
    assert sorted(first.all_special_tokens) == ["[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]"]


def test_from_scratch_takes_the_size_of_the_trained_vocabulary():
    tokenizer = train_tokenizer(["the cat sat", "the dog sat"] * 5, 60, 32)
    encoded = tokenizer("The cat!")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert "cat" in tokens
    reference = parse_reference("scratch://bert?hidden_size=16&num_attention_heads=2&num_hidden_layers=1", "teacher")
    model = model_from_scratch(reference, "teacher", "AutoModelForSequenceClassification", {"num_labels": 3}, tokenizer)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert load_config(reference, "teacher", {"num_labels": 3}).num_labels == 3


def test_the_papers_names_are_scratch_names_with_their_sizes():
    large = parse_reference("scratch://bert-large?num_hidden_layers=2", "model")
    assert large.family == "bert"
    assert (large.fields["hidden_size"], large.fields["num_hidden_layers"]) == (1024, 2)
    shared = load_config(parse_reference("scratch://albert-base?layer_sharing=none", "model"), "model")
    assert (shared.hidden_size, shared.embedding_size, shared.num_hidden_groups) == (768, 128, 12)
    with pytest.raises(InputError, match="albert-xxlarge"):
        parse_reference("scratch://bert-huge", "model")


@pytest.mark.parametrize("family", ["roberta", "mobilebert", "bart", "modernbert", "xlnet"])
def test_other_families_from_scratch(family: str):
    assert load_config(parse_reference(f"scratch://{family}", "model"), "model").model_type == family
