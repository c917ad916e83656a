"""ALBERTs whose layers share everything, one part, or nothing: built, trained, saved and loaded with ties intact."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AlbertForPreTraining, PreTrainedModel

from stillhouse.errors import InputError
from stillhouse.models.albert import layer_sharing_of
from stillhouse.models.checkpoints import (
    build_model,
    check_reference,
    load_config,
    load_model,
    parameter_count,
    save_model,
)
from stillhouse.models.references import parse_reference
from stillhouse.models.shape import apply_shape

LAYERS = 3
TINY = (
    f"scratch://albert?num_hidden_layers={LAYERS}&hidden_size=32&num_attention_heads=4&intermediate_size=64"
    "&vocab_size=100&embedding_size=12&max_position_embeddings=40"
)
CLASSIFIER = "AutoModelForSequenceClassification"


def albert(sharing: str, auto_class: str = CLASSIFIER, fields: str = "") -> PreTrainedModel:
    torch.manual_seed(0)
    text = f"{TINY}&layer_sharing={sharing}{fields}"
    return build_model(load_config(parse_reference(text, "albert"), "albert"), auto_class).eval()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 100, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch()).logits


def distinct(model: PreTrainedModel, part: str) -> int:
    """How many different tensors the layers have for a part of their block."""
    blocks = [group.albert_layers[0] for group in model.base_model.encoder.albert_layer_groups]
    return len({id(block.get_submodule(part).weight) for block in blocks})


@pytest.mark.parametrize(
    ("sharing", "attention", "ffn", "groups"),
    [("all", 1, 1, 1), ("attention", 1, LAYERS, LAYERS), ("ffn", LAYERS, 1, LAYERS), ("none", LAYERS, LAYERS, LAYERS)],
)
def test_layers_share_what_they_are_asked_to(sharing: str, attention: int, ffn: int, groups: int):
    model = albert(sharing)
    assert {distinct(model, f"attention.{part}") for part in ("query", "key", "value", "dense", "LayerNorm")} == {
        attention
    }
    assert {distinct(model, part) for part in ("ffn", "ffn_output", "full_layer_layer_norm")} == {ffn}
    assert model.config.num_hidden_groups == groups
    assert layer_sharing_of(model.config) == sharing
    assert len(model(**batch(), output_hidden_states=True).hidden_states) == 1 + LAYERS
    # As in the paper's section 4.8. The classifier's own is not the encoder's.
    assert {module.p for module in model.albert.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


@pytest.mark.parametrize(
    ("sharing", "millions"), [("all", 12), ("attention", 64), ("ffn", 38), ("none", 89)]
)  # Lan et al. 2019, arXiv:1909.11942, table 4, E=128
def test_albert_base_has_as_many_parameters_as_the_paper_says(sharing: str, millions: int):
    text = "scratch://albert?hidden_size=768&num_attention_heads=12&intermediate_size=3072&num_hidden_layers=12"
    config = load_config(parse_reference(f"{text}&layer_sharing={sharing}", "albert"), "albert")
    with torch.device("meta"):
        model = build_model(config, "AutoModel")
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.7)


@pytest.mark.parametrize("size", [8, 32, 48])
def test_embeddings_are_factorised_to_any_size(size: int):
    text = TINY.replace("embedding_size=12", f"embedding_size={size}")
    model = build_model(load_config(parse_reference(text, "albert"), "albert"), "AutoModel")
    assert model.embeddings.word_embeddings.weight.shape == (100, size)
    assert model.encoder.embedding_hidden_mapping_in.weight.shape == (32, size)
    assert model(**batch()).last_hidden_state.shape == (3, 9, 32)


@pytest.mark.parametrize("sharing", ["attention", "ffn"])
def test_a_shared_part_computes_what_equal_copies_compute(sharing: str):
    model, copies = albert(sharing), albert("none")
    copies.load_state_dict(model.state_dict())  # which has the shared tensors under each of their names
    assert parameter_count(copies) > parameter_count(model)
    assert torch.equal(logits(model), logits(copies))


@pytest.mark.parametrize("sharing", ["all", "attention", "ffn", "none"])
def test_training_saving_and_loading_keep_the_ties(sharing: str, tmp_path: Path):
    model = albert(sharing)
    before, count = logits(model), parameter_count(model)
    folder = tmp_path
    for round_ in range(2):  # what was loaded is trained, saved and loaded again
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(2):
            loss = model.train()(**batch(), labels=torch.tensor([0, 1, 0])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        folder = tmp_path / str(round_)
        save_model(model, folder)
        tensors = load_file(folder / "model.safetensors")
        assert sum(tensor.numel() for tensor in tensors.values()) == count, "a shared tensor is stored twice"
        loaded = load_model(parse_reference(str(folder), "albert"), "albert", CLASSIFIER, {})
        assert torch.equal(logits(loaded), logits(model))
        assert parameter_count(loaded) == count
        model = loaded
    assert not torch.allclose(before, logits(model), atol=1e-3)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["AlbertForSequenceClassification"]
    expected = {"all": (1, 1), "attention": (1, LAYERS), "ffn": (LAYERS, 1), "none": (LAYERS, LAYERS)}[sharing]
    assert (distinct(model, "attention.query"), distinct(model, "ffn")) == expected
    # transformers' own tying, which other code may call, leaves them as they are.
    model.tie_weights()
    assert (distinct(model, "attention.query"), distinct(model, "ffn")) == expected
    assert apply_shape(model) is model and parameter_count(model) == count


def test_a_pretrained_checkpoint_gives_its_encoder_to_other_heads(tmp_path: Path):
    model = albert("attention", "AutoModelForPreTraining")
    assert isinstance(model, AlbertForPreTraining)
    save_model(model, tmp_path / "pretrained")
    reference = parse_reference(str(tmp_path / "pretrained"), "albert")
    again = load_model(reference, "albert", "AutoModelForPreTraining", {})
    ids = batch()
    assert torch.equal(again(**ids).prediction_logits, model(**ids).prediction_logits)
    assert again.predictions.decoder.weight is again.albert.embeddings.word_embeddings.weight

    classifier = load_model(reference, "albert", CLASSIFIER, {"num_labels": 5})
    encoder = load_model(reference, "albert", "AutoModel", {})
    with torch.no_grad():
        wanted = model.albert(**ids).pooler_output
        assert torch.equal(classifier.albert(**ids).pooler_output, wanted)
        assert torch.equal(encoder(**ids).pooler_output, wanted)
    assert classifier.classifier.out_features == 5
    assert distinct(classifier, "attention.value") == distinct(encoder, "attention.value") == 1

    save_model(encoder, tmp_path / "encoder")
    headed = load_model(parse_reference(str(tmp_path / "encoder"), "albert"), "albert", CLASSIFIER, {})
    assert torch.equal(headed.albert(**ids).pooler_output, wanted)
    # A head of another size is replaced, one of the same size is not.
    save_model(classifier, tmp_path / "five")
    five = parse_reference(str(tmp_path / "five"), "albert")
    assert torch.equal(logits(load_model(five, "albert", CLASSIFIER, {"num_labels": 5})), logits(classifier))
    assert load_model(five, "albert", CLASSIFIER, {"num_labels": 2}).classifier.out_features == 2


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path):
    save_model(albert("ffn"), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    lost = "albert.encoder.albert_layer_groups.1.albert_layers.0.attention.key.weight"
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"albert: .* has no {lost}"):
        load_model(parse_reference(str(tmp_path), "albert"), "albert", CLASSIFIER, {})
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"albert: .* cannot be loaded"):
        load_model(parse_reference(str(tmp_path), "albert"), "albert", CLASSIFIER, {})


def test_a_shape_that_cannot_be_is_refused(tmp_path: Path):
    save_model(albert("ffn"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["stillhouse"] == {"layer_sharing": "ffn"}
    assert check_reference(str(tmp_path), "albert") == []
    for changes, says in [
        ({"stillhouse": {"layer_sharing": "some"}}, "which is none of attention, ffn"),
        ({"stillhouse": {"future": 1}}, "does not understand"),
        ({"stillhouse": ["attention"]}, "does not understand"),
        ({"stillhouse": {"layer_norm_eps": "x"}}, "no number above 0"),
        ({"stillhouse": {"heads": [4, 0, 4]}}, "whole numbers from 1"),
        ({"stillhouse": {"layer_sharing": "ffn", "neurons": [64, 64, 32]}}, "though all layers share"),
        ({"num_hidden_groups": 1}, "as many hidden groups as layers"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        (problem,) = check_reference(str(tmp_path), "albert")
        assert problem.where == "albert" and says in problem.what
        with pytest.raises(InputError, match=r"^albert: "):
            load_model(parse_reference(str(tmp_path), "albert"), "albert", CLASSIFIER, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{TINY}&layer_sharing=some", "all, attention, ffn, none"),
        (f"{TINY}&layer_sharing=attention&num_hidden_groups=2", "num_hidden_groups is 2"),
        ("scratch://bert?layer_sharing=all", "no config field layer_sharing"),
        (f'{TINY}&stillhouse={{"heads":[1]}}', "no config field stillhouse"),
        ("teacher://albert?layer_sharing=some", "all, attention, ffn, none"),
        ("teacher://albert?num_hidden_layers=2", "gives num_hidden_layers"),
        ("teacher://distilbert", "no model for albert"),
        ("teacher://bert", "albert, distilbert"),
    ],
)
def test_sharing_that_cannot_be_is_refused_by_name(text: str, says: str):
    (problem,) = check_reference(text, "albert")
    assert problem.where == "albert"
    assert says in f"{problem.what} {problem.remedy}"


@pytest.mark.parametrize(
    "text", [f"{TINY}&layer_sharing=ffn", f"{TINY}&layer_sharing=none", "teacher://albert?layer_sharing=ffn"]
)
def test_sharing_that_can_be_is_taken(text: str):
    assert check_reference(text, "albert") == []
