"""Splits, duplicates, limits, and the artifact that comes out."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from stillhouse.artifacts import DatasetManifest
from stillhouse.data.dataset import load_split, read_split
from stillhouse.data.prepare import inspect_source, prepare_dataset
from stillhouse.errors import InputError, ManifestError
from stillhouse.progress import EVENTS_VARIABLE, Step

SPLITS = ("train", "validation", "test")


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    return str(path)


def texts(folder: Path) -> dict[str, list[str]]:
    return {split: read_split(folder, split)["text"] for split in SPLITS}


def all_texts(folder: Path) -> list[str]:
    return [text for part in texts(folder).values() for text in part]


def numbered(count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f"text {i}", "ccccccabbb"[i % 10]) for i in range(start, start + count)]


def test_made_splits_are_stratified_disjoint_and_whole(tmp_path, config_for):
    config = config_for(write(tmp_path / "rows.tsv", numbered(1000)), validation_fraction=0.1, test_fraction=0.2)
    manifest = prepare_dataset(config, tmp_path / "out", fingerprint="")
    assert manifest.label_names == ["a", "b", "c"]
    assert manifest.splits["train"].class_counts == {"a": 70, "b": 210, "c": 420}
    assert manifest.splits["validation"].class_counts == {"a": 10, "b": 30, "c": 60}
    assert manifest.splits["test"].class_counts == {"a": 20, "b": 60, "c": 120}
    assert sorted(all_texts(tmp_path / "out")) == sorted(text for text, _ in numbered(1000))
    for split in SPLITS:
        labels = read_split(tmp_path / "out", split)["label"]
        assert Counter(manifest.label_names[i] for i in labels) == manifest.splits[split].class_counts
        assert manifest.splits[split].rows == len(labels)


def test_splits_depend_on_seed_and_rows_but_not_on_order(tmp_path, config_for):
    rows = numbered(500)
    shuffled = random.Random(0).sample(rows, len(rows))
    first = config_for(write(tmp_path / "a.tsv", rows))
    other = config_for(write(tmp_path / "b.tsv", shuffled))
    seeded = config_for(first.data, seed=7)
    for name, config in (("1", first), ("2", first), ("3", other), ("4", seeded)):
        prepare_dataset(config, tmp_path / name, fingerprint="")
    assert texts(tmp_path / "1") == texts(tmp_path / "2")
    assert (tmp_path / "1" / "train.parquet").read_bytes() == (tmp_path / "2" / "train.parquet").read_bytes()
    assert DatasetManifest.digest(tmp_path / "1") == DatasetManifest.digest(tmp_path / "2")
    assert {k: set(v) for k, v in texts(tmp_path / "1").items()} == {
        k: set(v) for k, v in texts(tmp_path / "3").items()
    }
    assert set(texts(tmp_path / "1")["test"]) != set(texts(tmp_path / "4")["test"])


def test_splits_are_the_same_on_every_machine(tmp_path, config_for):
    prepare_dataset(config_for(write(tmp_path / "a.tsv", numbered(60))), tmp_path / "out", fingerprint="")
    assert {k: sorted(v) for k, v in texts(tmp_path / "out").items() if k != "train"} == GOLDEN


GOLDEN = {
    "validation": ["text 11", "text 18", "text 41", "text 46", "text 52", "text 8"],
    "test": ["text 12", "text 25", "text 38", "text 54", "text 56", "text 7"],
}


def test_repeats_in_one_source_never_cross_a_cut(tmp_path, config_for):
    rows = [*numbered(200), *numbered(200), *((f"  text {i}  ", "a") for i in range(50))]
    manifest = prepare_dataset(config_for(write(tmp_path / "rows.tsv", rows)), tmp_path / "out", fingerprint="")
    found = all_texts(tmp_path / "out")
    assert len(found) == len(set(found)) == 200
    assert manifest.duplicates_removed == 250


def test_test_wins_over_validation_wins_over_train(tmp_path, config_for):
    config = config_for(
        write(tmp_path / "train.tsv", [*numbered(100), ("text 1", "b")]),
        validation_data=write(tmp_path / "validation.tsv", numbered(20, 90)),
        test_data=write(tmp_path / "test.tsv", [*numbered(20, 105), *numbered(2, 0), *numbered(2, 0)]),
    )
    manifest = prepare_dataset(config, tmp_path / "out", fingerprint="")
    found = texts(tmp_path / "out")
    assert found["test"] == [f"text {i}" for i in [*range(105, 125), 0, 1, 0, 1]]
    assert found["validation"] == [f"text {i}" for i in range(90, 105)]
    assert found["train"] == [f"text {i}" for i in range(2, 90)]
    assert manifest.duplicates_removed == 5 + 10 + 3
    assert inspect_source(config).duplicates_removed == manifest.duplicates_removed


def test_only_the_missing_split_is_made(tmp_path, config_for):
    test = write(tmp_path / "test.tsv", numbered(30, 180))
    config = config_for(write(tmp_path / "train.tsv", numbered(200)), test_data=test)
    prepare_dataset(config, tmp_path / "out", fingerprint="")
    found = texts(tmp_path / "out")
    assert found["test"] == [text for text, _ in numbered(30, 180)]
    assert (len(found["train"]), len(found["validation"])) == (162, 18)
    assert not set(found["test"]) & set(found["train"] + found["validation"])


def test_limits_sample_at_random_and_stratified(tmp_path, config_for):
    config = config_for(
        write(tmp_path / "train.tsv", sorted(numbered(1000), key=lambda row: row[1])),
        test_data=write(tmp_path / "test.tsv", numbered(200, 1000)),
        max_train_rows=100,
        max_validation_rows=20,
        max_test_rows=50,
    )
    manifest = prepare_dataset(config, tmp_path / "out", fingerprint="")
    assert manifest.splits["train"].class_counts == {"a": 10, "b": 30, "c": 60}
    assert manifest.splits["validation"].class_counts == {"a": 2, "b": 6, "c": 12}
    assert manifest.splits["test"].class_counts == {"a": 5, "b": 15, "c": 30}
    found = texts(tmp_path / "out")
    assert found["test"] != [text for text, _ in numbered(50, 1000)]
    config = config_for(config.data, test_data=config.test_data, max_train_rows=100, seed=1)
    prepare_dataset(config, tmp_path / "other", fingerprint="")
    assert set(texts(tmp_path / "other")["train"]) != set(found["train"])


def test_a_rare_label_stays_in_train_whatever_the_limit(tmp_path, config_for):
    rows = [*[(f"text {i}", "common") for i in range(500)], ("one", "rare"), ("two", "rarer")]
    config = config_for(write(tmp_path / "rows.tsv", rows), max_train_rows=10)
    manifest = prepare_dataset(config, tmp_path / "out", fingerprint="")
    assert manifest.splits["train"].class_counts == {"common": 8, "rare": 1, "rarer": 1}


def test_a_label_that_duplicates_take_out_of_train_is_a_problem(tmp_path, config_for):
    config = config_for(
        write(tmp_path / "train.tsv", [*numbered(60), ("rare one", "z"), ("rare two", "z")]),
        test_data=write(tmp_path / "test.tsv", [("rare one", "z"), ("rare two", "z"), ("new", "a")]),
    )
    assert ["no train rows are left of labels 'z'" in p.what for p in inspect_source(config).problems] == [True]


def test_length_quantiles_are_in_characters(tmp_path, config_for):
    rows = [("雪" * n, "ab"[n % 2]) for n in range(1, 101)]
    test = write(tmp_path / "test.tsv", rows)
    config = config_for(write(tmp_path / "train.tsv", numbered(50)), test_data=test)
    manifest = prepare_dataset(config_for(config.data, test_data=test), tmp_path / "out", fingerprint="")
    expected = {"0.5": 50.0, "0.9": 90.0, "0.95": 95.0, "0.99": 99.0, "1.0": 100.0}
    assert manifest.splits["test"].length_quantiles == expected


def test_manifest_says_what_was_read(tmp_path, config_for):
    config = config_for(write(tmp_path / "rows.tsv", numbered(100)), seed=5)
    report = inspect_source(config)
    returned = prepare_dataset(config, tmp_path / "out", fingerprint=report.fingerprint)
    manifest = DatasetManifest.load(tmp_path / "out")
    assert manifest == returned
    manifest.verify(tmp_path / "out")
    assert set(manifest.files) == {"train.parquet", "validation.parquet", "test.parquet"}
    assert manifest.source == {"data": config.data, "validation_data": "", "test_data": ""}
    assert (manifest.columns, manifest.seed, manifest.task) == ({"text": "text", "label": "label"}, 5, "classification")
    assert manifest.fingerprint == report.fingerprint != ""
    assert report.rows == {split: info.rows for split, info in manifest.splits.items()}


def test_fingerprint_follows_content_and_columns_alone(tmp_path, config_for):
    config = config_for(write(tmp_path / "rows.tsv", numbered(100)))
    first = inspect_source(config).fingerprint
    write(tmp_path / "copy.tsv", numbered(100))
    assert inspect_source(config_for(tmp_path / "copy.tsv", seed=9, max_train_rows=50)).fingerprint == first
    write(tmp_path / "rows.tsv", [*numbered(99), ("text 99!", "b")])
    assert inspect_source(config).fingerprint not in ("", first)
    with pytest.raises(InputError, match="changed since it was inspected"):
        prepare_dataset(config, tmp_path / "out", fingerprint=first)
    assert not list(tmp_path.glob("*out*"))


def test_a_source_that_changes_between_the_passes_leaves_nothing(tmp_path, config_for, monkeypatch):
    config = config_for(write(tmp_path / "rows.tsv", numbered(100)))
    from stillhouse.data import prepare

    real = prepare.write_splits

    def change_then_write(*arguments):
        write(tmp_path / "rows.tsv", [(text + "!", label) for text, label in numbered(100)])
        return real(*arguments)

    monkeypatch.setattr(prepare, "write_splits", change_then_write)
    with pytest.raises(InputError, match="changed since"):
        prepare_dataset(config, tmp_path / "out", fingerprint="")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.tsv"]


def test_nothing_is_left_when_the_writing_is_interrupted(tmp_path, config_for, monkeypatch):
    config = config_for(write(tmp_path / "rows.tsv", numbered(100)))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(DatasetManifest, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(config, tmp_path / "out", fingerprint="")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.tsv"]


def test_output_folder(tmp_path, config_for):
    config = config_for(write(tmp_path / "rows.tsv", numbered(100)))
    (tmp_path / "empty").mkdir()
    prepare_dataset(config, tmp_path / "empty", fingerprint="")
    prepare_dataset(config, tmp_path / "new" / "deep", fingerprint="")
    with pytest.raises(InputError, match="exists and is not empty"):
        prepare_dataset(config, tmp_path / "empty", fingerprint="")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        prepare_dataset(config, tmp_path / "file" / "out", fingerprint="")


def test_progress_is_reported(tmp_path, config_for, monkeypatch):
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))
    config = config_for(write(tmp_path / "rows.tsv", numbered(100)))
    prepare_dataset(config, tmp_path / "out", fingerprint="", step=Step("prepare-data"))
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["note"] for event in events] == ["checking: 100 rows", "writing: 100 rows"]
    assert all(event["done"] == event["total"] == Path(config.data).stat().st_size for event in events)


def test_reading_back(tmp_path, config_for):
    prepare_dataset(config_for(write(tmp_path / "rows.tsv", numbered(100))), tmp_path / "out", fingerprint="")
    dataset = load_split(tmp_path / "out", "test")
    assert dataset[:] == read_split(tmp_path / "out", "test")
    assert str(dataset.features["label"].dtype) == "int64"
    with pytest.raises(InputError, match="has no 'dev'; it has: "):
        read_split(tmp_path / "out", "dev")
    (tmp_path / "out" / "test.parquet").write_bytes(b"x")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_split(tmp_path / "out", "test")
    (tmp_path / "out" / "test.parquet").unlink()
    with pytest.raises(ManifestError, match="is missing"):
        load_split(tmp_path / "out", "test")
    manifest = tmp_path / "out" / "dataset.json"
    manifest.write_text(manifest.read_text().replace("dataset/v1", "dataset/v9"))
    with pytest.raises(ManifestError, match="v9"):
        read_split(tmp_path / "out", "train")


def test_sst2_with_its_given_splits(tmp_path, config_for, shared):
    folder = shared / "sst2"
    config = config_for(
        folder / "train.tsv",
        text="sentence",
        validation_data=str(folder / "dev.tsv"),
        test_data=str(folder / "test.tsv"),
        max_train_rows=10_000,
    )
    manifest = prepare_dataset(config, tmp_path / "out", fingerprint=inspect_source(config).fingerprint)
    assert {split: info.rows for split, info in manifest.splits.items()} == {
        "train": 10_000,
        "validation": 872,
        "test": 1821,
    }
    assert manifest.label_names == ["0", "1"]
    found = texts(tmp_path / "out")
    assert not set(found["test"]) & set(found["train"]) and not set(found["validation"]) & set(found["train"])


def test_sms_spam_has_403_exact_repeats_and_11_that_differ_in_outer_spaces(tmp_path, config_for, shared):
    path = shared / "sms_spam" / "SMSSpamCollection.tsv"
    config = config_for(path, text="SMS", label="Label")
    manifest = prepare_dataset(config, tmp_path / "out", fingerprint="")
    raw = [line.split("\t")[1] for line in path.read_text(encoding="utf-8").split("\n")[1:] if line]
    assert len(raw) - len(set(raw)) == 403
    assert manifest.duplicates_removed == len(raw) - len({text.strip() for text in raw}) == 403 + 11
    assert sum(info.rows for info in manifest.splits.values()) == 5574 - 414
    assert manifest.label_names == ["ham", "spam"]


def test_quoted_csv_with_embedded_line_breaks(tmp_path, config_for, shared):
    config = config_for(shared / "hate_offensive" / "labeled_data.csv", text="tweet", label="class")
    manifest = prepare_dataset(config, tmp_path / "out", fingerprint="")
    assert sum(info.rows for info in manifest.splits.values()) == 24_783
    assert manifest.label_names == ["0", "1", "2"]
    assert any("\n" in text for text in texts(tmp_path / "out")["train"])
