"""Sequences from a prepared corpus: packed, masked anew, shared out between processes, and gone on with."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.errors import InputError
from stillhouse.pretraining import shards
from stillhouse.pretraining.measure import load_vocabulary
from stillhouse.pretraining.shards import ShardWriter, read_shard, shard_paths
from stillhouse.pretraining.stream import Batches, Position, Recipe, Sequences
from stillhouse.pretraining.vocabulary import Vocabulary

LENGTH = 16


@pytest.fixture
def vocabulary(corpus: Path) -> Vocabulary:
    return load_vocabulary(corpus)


@pytest.fixture
def files(corpus: Path, tmp_path: Path) -> list[Path]:
    """The corpus's documents in several small files."""
    writer = ShardWriter(tmp_path / "train", shard_tokens=1500)
    for path in shard_paths(corpus, "train"):
        shard = read_shard(path)
        for edges in shard.documents[:60]:
            writer.write([shard.tokens[a:b].tolist() for a, b in itertools.pairwise(edges)])
    writer.flush()
    assert writer.shards >= 3
    return shard_paths(tmp_path, "train")


def batches(sequences: Sequences, steps: int = 12, **changes: Any) -> Batches:
    values = {"batch_size": 4, "accumulation": 1, "steps": steps, "rank": 0, "processes": 1}
    return Batches(sequences, **{**values, **changes})


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = [name for name, value in one.items() if isinstance(value, torch.Tensor)]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in names)


def test_documents_survive_their_files(files: list[Path], corpus: Path):
    before = read_shard(shard_paths(corpus, "train")[0])
    parts = [read_shard(path) for path in files]
    found = [part.tokens[edges[0] : edges[-1]].tolist() for part in parts for edges in part.documents]
    assert found == [before.tokens[edges[0] : edges[-1]].tolist() for edges in before.documents[:60]]
    sizes = [np.diff(edges).tolist() for part in parts for edges in part.documents]
    assert sizes == [np.diff(edges).tolist() for edges in before.documents[:60]]
    # Files are filled with whole documents: all but the last reach the size.
    assert all(len(part.tokens) >= 1500 for part in parts[:-1])


def test_a_writer_leaves_out_what_is_empty(tmp_path: Path):
    writer = ShardWriter(tmp_path / "x")
    writer.write([[], []])
    writer.write([[], [1, 2], []])
    writer.flush()
    assert (writer.documents, writer.sentences, writer.tokens, writer.shards) == (1, 1, 2, 1)
    assert shards.read_shard(tmp_path / "x" / "part-00000.parquet").documents == [[0, 2]]


def test_single_sequences_are_packed_to_full_length_across_documents(files: list[Path], vocabulary: Vocabulary):
    sequences = Sequences(files[:1], Recipe(length=LENGTH), vocabulary)
    shard = read_shard(files[0])
    total = len(shard.tokens) + len(shard.documents) - 1
    block, _, epoch = next(sequences.blocks(-(-total // (LENGTH - 2)), Position()))
    assert epoch == 1.0
    assert (np.sort(block["lengths"])[1:] == LENGTH).all()
    inner = [row[1 : length - 1].tolist() for row, length in zip(block["ids"], block["lengths"], strict=True)]
    assert all(row[0] == vocabulary.start for row in block["ids"])
    assert all(row[n - 1] == vocabulary.separator for row, n in zip(block["ids"], block["lengths"], strict=True))
    assert not block["types"].any()
    # All tokens are there once, and a separator between each two documents.
    found = sorted(token for row in inner for token in row)
    assert found == sorted([*shard.tokens.tolist(), *[vocabulary.separator] * (len(shard.documents) - 1)])


def test_pairs_have_two_types_and_three_special_tokens(files: list[Path], vocabulary: Vocabulary):
    block = Sequences(files, Recipe(length=LENGTH, task="sop"), vocabulary).first(50)
    for ids, types, length in zip(block["ids"], block["types"], block["lengths"], strict=True):
        assert length <= LENGTH
        separators = np.flatnonzero(ids[:length] == vocabulary.separator)
        assert len(separators) == 2 and separators[1] == length - 1
        assert types.tolist() == [0] * (separators[0] + 1) + [1] * (length - separators[0] - 1) + [0] * (
            LENGTH - length
        )
        assert (ids[length:] == vocabulary.padding).all()


@pytest.mark.parametrize("task", ["nsp", "sop"])
@pytest.mark.parametrize("count", [8, 10_000])
def test_held_out_pairs_have_as_many_of_either_label(task: str, count: int, files: list[Path], vocabulary: Vocabulary):
    sequences = Sequences(files, Recipe(length=LENGTH, task=task), vocabulary)
    labels = sequences.first(count)["labels"].tolist()
    assert labels.count(0) == labels.count(1)
    assert len(labels) == count or count == 10_000 > len(labels) > 8
    assert len(sequences.first(1)["labels"]) == 1


def test_masks_and_orders_are_drawn_anew_in_every_pass(files: list[Path], vocabulary: Vocabulary):
    sequences = Sequences(files[:1], Recipe(length=LENGTH), vocabulary)
    seen: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    order = []
    for batch in batches(sequences, steps=120):
        shape = batch["input_ids"].shape
        chosen = torch.zeros(shape.numel(), dtype=torch.bool)
        chosen[batch["positions"]] = True
        whole = batch["input_ids"].flatten().clone()
        whole[batch["positions"]] = batch["targets"]
        for row, mask in zip(whole.view(shape).tolist(), chosen.view(shape), strict=True):
            seen.setdefault(tuple(row), []).append(tuple(mask.nonzero().flatten().tolist()))
            order.append(tuple(row))
    # The documents come in another order each time, so only sequences inside of one document come again.
    repeated = [masks for masks in seen.values() if len(masks) > 1]
    assert len(repeated) > 5
    assert sum(len(set(masks)) > 1 for masks in repeated) / len(repeated) > 0.9


@pytest.mark.parametrize("task", ["", "nsp", "sop"])
def test_a_stream_goes_on_where_it_was_left(task: str, files: list[Path], vocabulary: Vocabulary):
    sequences = Sequences(files, Recipe(length=LENGTH, task=task, seed=5), vocabulary)
    whole = list(batches(sequences, steps=150))
    assert whole[-1]["epoch"] > 1
    for step in (1, 30, 149):
        rest = batches(sequences, steps=150)
        rest.begin, rest.position = step, Position(*whole[step - 1]["position"])
        found = list(rest)
        assert len(found) == 150 - step
        assert all(same(one, other) for one, other in zip(found, whole[step:], strict=True))


def test_several_processes_take_the_micro_batches_of_one(files: list[Path], vocabulary: Vocabulary):
    sequences = Sequences(files, Recipe(length=50, task="nsp"), vocabulary)
    one = list(batches(sequences, accumulation=4))
    two = [list(batches(sequences, accumulation=2, rank=rank, processes=2)) for rank in (0, 1)]
    together = [batch for pair in zip(*two, strict=True) for batch in pair]
    assert len(one) == len(together) == 48
    assert all(same(a, b) and a["shares"] == b["shares"] for a, b in zip(one, together, strict=True))
    # Every mean counts by what it is a mean of.
    for step in range(0, 48, 4):
        parts = one[step : step + 4]
        masked = [len(part["targets"]) for part in parts]
        tokens = [int(part["attention_mask"].sum()) for part in parts]
        assert [part["shares"]["masked"] for part in parts] == pytest.approx([4 * m / sum(masked) for m in masked])
        assert [part["shares"]["tokens"] for part in parts] == pytest.approx([4 * t / sum(tokens) for t in tokens])
    assert len({len(batch["targets"]) for batch in one}) > 1


def test_special_tokens_and_padding_are_never_masked(files: list[Path], vocabulary: Vocabulary):
    sequences = Sequences(files, Recipe(length=LENGTH, task="nsp", mask_probability=0.9), vocabulary)
    for batch in batches(sequences):
        assert not vocabulary.special[batch["targets"].numpy()].any()
        assert batch["attention_mask"].flatten()[batch["positions"]].all()


def test_a_corpus_that_gives_no_sequence_is_refused(vocabulary: Vocabulary, tmp_path: Path):
    writer = ShardWriter(tmp_path / "train")
    for _ in range(5):
        writer.write([[11, 12, 13]])
    writer.flush()
    sequences = Sequences(shard_paths(tmp_path, "train"), Recipe(length=LENGTH, task="sop"), vocabulary)
    with pytest.raises(InputError, match="several sentences"):
        next(iter(batches(sequences)))
    with pytest.raises(InputError, match="held-out"):
        sequences.first(3)
