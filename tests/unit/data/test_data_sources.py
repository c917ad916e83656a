"""Every format, from every kind of place, gives the same rows."""

from __future__ import annotations

import csv
import functools
import gzip
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import object_stores
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.data.dataset import read_split
from stillhouse.data.location import parse_demo, parse_hub, public_name
from stillhouse.data.prepare import inspect_source, prepare_dataset
from stillhouse.data.readers import BLOCK_BYTES
from stillhouse.data.stream import INVALID, Utf8Stream

Rows = list[tuple[str, str]]


def csv_bytes(rows: Rows, end: str = "\n") -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end)
    writer.writerows([("id", "text", "label"), *((i, *row) for i, row in enumerate(rows))])
    return buffer.getvalue().encode()


def tsv_bytes(rows: Rows) -> bytes:
    return "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]).encode()


def jsonl_bytes(rows: Rows) -> bytes:
    return "".join(json.dumps({"label": label, "text": text, "id": 1}) + "\n" for text, label in rows).encode()


def parquet_bytes(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"label": [label for _, label in rows], "text": [text for text, _ in rows]}), buffer)
    return buffer.getvalue()


def flat(rows: Rows) -> Rows:
    """Rows without line breaks, which TSV cannot hold."""
    return [(text.replace("\n", " "), label) for text, label in rows]


def stored(folder: Path) -> Rows:
    """All rows of a dataset artifact, sorted."""
    found = []
    for split in ("train", "validation", "test"):
        columns = read_split(folder, split)
        found += list(zip(columns["text"], ["ab"[i] for i in columns["label"]], strict=True))
    return sorted(found)


ENCODERS = {"csv": csv_bytes, "tsv": tsv_bytes, "jsonl": jsonl_bytes, "parquet": parquet_bytes}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.gz", "jsonl.gz"])
def test_each_format_gives_its_rows(tmp_path, config_for, rows, suffix):
    rows = flat(rows) if suffix.startswith("tsv") else rows
    content = ENCODERS[suffix.split(".")[0]](rows)
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    report = inspect_source(config_for(path))
    assert report.problems == ()
    assert set(report.columns) >= {"text", "label"}
    manifest = prepare_dataset(config_for(path), tmp_path / "out", fingerprint=report.fingerprint)
    assert stored(tmp_path / "out") == sorted(rows)
    assert manifest.label_names == ["a", "b"]


@pytest.mark.parametrize("change", [lambda b: b"\xef\xbb\xbf" + b, lambda b: b"\n\n" + b, lambda b: b.rstrip(b"\n")])
def test_byte_order_mark_leading_blank_lines_and_no_last_break(tmp_path, config_for, rows, change):
    (tmp_path / "rows.csv").write_bytes(change(csv_bytes(rows)))
    prepare_dataset(config_for(tmp_path / "rows.csv"), tmp_path / "out", fingerprint="")
    assert stored(tmp_path / "out") == sorted(rows)


def test_byte_order_mark_before_the_wanted_column(tmp_path, config_for, rows):
    (tmp_path / "rows.tsv").write_bytes(b"\xef\xbb\xbf" + tsv_bytes(flat(rows)))
    assert inspect_source(config_for(tmp_path / "rows.tsv")).columns == ("text", "label")
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl_bytes(rows))
    assert inspect_source(config_for(tmp_path / "rows.jsonl")).problems == ()


def test_windows_line_ends(tmp_path, config_for, rows):
    (tmp_path / "rows.csv").write_bytes(csv_bytes(rows, "\r\n"))
    prepare_dataset(config_for(tmp_path / "rows.csv"), tmp_path / "out", fingerprint="")
    assert stored(tmp_path / "out") == sorted(rows)


def test_a_folder_is_read_in_name_order_and_other_files_are_ignored(tmp_path, config_for, rows):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "2.csv.gz").write_bytes(gzip.compress(csv_bytes(rows[20:])))
    (folder / "1.csv").write_bytes(csv_bytes(rows[:20]))
    (folder / "LICENSE").write_text("words")
    (folder / ".hidden.csv").write_text("words")
    (folder / "_SUCCESS").write_text("")
    prepare_dataset(config_for(folder), tmp_path / "out", fingerprint="")
    assert stored(tmp_path / "out") == sorted(rows)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 2], ["2", "9", "10"]),
        ([True, False], ["false", "true"]),
        ([1.0, 0.0], ["0", "1"]),
        (["b", "10", "9"], ["10", "9", "b"]),
        (["-1", "10", "+2"], ["-1", "+2", "10"]),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_labels_of_any_type_become_sorted_names(tmp_path, config_for, values, names, suffix):
    path = tmp_path / f"rows.{suffix}"
    labels = [values[i % len(values)] for i in range(60)]
    texts = [f"text {i}" for i in range(60)]
    if suffix == "parquet":
        pq.write_table(pa.table({"text": texts, "label": pa.array(labels).dictionary_encode()}), path)
    else:
        path.write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in zip(texts, labels, strict=True)))
    report = inspect_source(config_for(path))
    assert report.problems == ()
    assert list(report.label_names) == names


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_parquet_text_of_any_string_type(tmp_path, config_for, rows, kind):
    texts = [text.encode() if "binary" in str(kind) else text for text, _ in rows]
    table = pa.table({"text": pa.array(texts, kind), "label": [label for _, label in rows]})
    pq.write_table(table, tmp_path / "rows.parquet")
    prepare_dataset(config_for(tmp_path / "rows.parquet"), tmp_path / "out", fingerprint="")
    assert stored(tmp_path / "out") == sorted(rows)


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path) -> Iterator[str]:
    folder = tmp_path / "web"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "csv.gz"])
def test_from_a_web_server_without_ranges(tmp_path, config_for, rows, web, suffix):
    content = ENCODERS[suffix.split(".")[0]](rows)
    (tmp_path / "web" / f"rows.{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    manifest = prepare_dataset(config_for(f"{web}/rows.{suffix}?token=secret"), tmp_path / "out", fingerprint="")
    assert stored(tmp_path / "out") == sorted(rows)
    assert "secret" not in (tmp_path / "out" / "dataset.json").read_text()
    assert manifest.source["data"] == f"{web}/rows.{suffix}"


def test_web_faults_are_problems_without_the_query(config_for, web):
    report = inspect_source(config_for(f"{web}/nope.csv?token=secret", test_data="http://127.0.0.1:9/x.csv"))
    assert [problem.where.rpartition("/")[2] for problem in report.problems] == ["nope.csv", "x.csv"]
    assert "secret" not in str(report)
    assert report.fingerprint == ""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_stores.s3("rows"):
        yield "s3://rows"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_from_an_object_store(tmp_path, config_for, rows, bucket, suffix):
    import s3fs

    store = s3fs.S3FileSystem()
    store.pipe_file(f"rows/{suffix}/1.{suffix}", ENCODERS[suffix](rows[:25]))
    store.pipe_file(f"rows/{suffix}/2.{suffix}", ENCODERS[suffix](rows[25:]))
    config = config_for(f"{bucket}/{suffix}")
    report = inspect_source(config)
    assert report.problems == ()
    prepare_dataset(config, tmp_path / "out", fingerprint=report.fingerprint)
    assert stored(tmp_path / "out") == sorted(rows)
    # What another program added is seen, although this one's client keeps listings.
    import boto3

    boto3.client("s3").put_object(Bucket="rows", Key=f"{suffix}/3.{suffix}", Body=ENCODERS[suffix](rows[:5]))
    assert inspect_source(config).fingerprint not in ("", report.fingerprint)
    one = inspect_source(config_for(f"{bucket}/{suffix}/1.{suffix}", test_data=f"{bucket}/{suffix}/none.{suffix}"))
    assert [(p.where, "no such file" in p.what) for p in one.problems] == [("test_data", True)]


def test_a_hub_dataset_in_a_local_folder_with_its_own_splits(tmp_path, config_for, rows):
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for name, part in (("train", rows[:30]), ("validation", rows[30:35]), ("test", rows[35:])):
        (folder / "data" / f"{name}-00000.parquet").write_bytes(parquet_bytes(part))
    config = config_for(f"hub://{folder}")
    report = inspect_source(config)
    assert report.problems == ()
    assert report.rows == {"train": 30, "validation": 5, "test": 5}
    prepare_dataset(config, tmp_path / "out", fingerprint=report.fingerprint)
    assert stored(tmp_path / "out") == sorted(rows)
    (folder / "data" / "test-00000.parquet").write_bytes(parquet_bytes(rows[34:]))
    assert inspect_source(config).fingerprint != report.fingerprint


def test_class_names_of_a_hub_dataset_and_its_unlabelled_test_split(tmp_path, config_for, rows):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    for name, labels in (("train", ["ab".index(label) for _, label in rows]), ("test", [-1] * len(rows))):
        split = datasets.Dataset.from_dict({"text": [text for text, _ in rows], "label": labels}, features=features)
        split.to_parquet(folder / f"{name}-00000.parquet")
    report = inspect_source(config_for(f"hub://{tmp_path / 'set'}"))
    assert report.problems == ()
    assert report.label_names == ("a", "b")
    assert report.rows == {"train": 32, "validation": 4, "test": 4}


def test_an_unreachable_hub_is_one_problem():
    pytest.importorskip("huggingface_hub")
    script = """
from stillhouse.data.config import DataConfig
from stillhouse.data.prepare import inspect_source
from stillhouse.data.schema import Column, RowSchema
schema = RowSchema((Column("text", "text", "text"), Column("label", "label", "class")))
for problem in inspect_source(DataConfig(task="t", schema=schema, data="hub://nobody/nothing@main:plain")).problems:
    print(problem)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("data: hub://nobody/nothing@main:plain: the hub did not answer")
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_hub_locations():
    parsed = parse_hub("hub://owner/name@refs/convert/parquet:sst2")
    assert parsed is not None
    assert (parsed.path, parsed.revision, parsed.config) == ("owner/name", "refs/convert/parquet", "sst2")
    assert parse_hub("hub://imdb") is not None
    assert parse_hub("hub://a/b/c") is None
    assert parse_hub("hub://") is None


def test_demo_locations():
    assert parse_demo("demo://reviews") == (5500, 0)
    assert parse_demo("demo://reviews?rows=10&seed=3") == (10, 3)
    for wrong in ("demo://other", "demo://reviews?rows=0", "demo://reviews?rows=x", "demo://reviews?size=3"):
        with pytest.raises(ValueError):
            parse_demo(wrong)


def test_public_names_carry_no_secret():
    assert public_name("https://user:pass@host:1/a.csv?sig=x#y") == "https://host:1/a.csv"
    assert public_name("s3://bucket/a.csv") == "s3://bucket/a.csv"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_text_is_the_same_however_it_is_cut_into_blocks(size):
    class Trickle(io.BytesIO):
        def read(self, _: int = -1) -> bytes:
            return super().read(size)

    content = "naïve 雪 😀 end"
    assert Utf8Stream(Trickle(b"\xef\xbb\xbf" + content.encode())).read().decode() == content
    broken = Utf8Stream(Trickle(b"a\xff" + "雪".encode() + b"\xe9t\xe9 " + "😀".encode() + b"\xf0\x9f"))
    assert broken.read().decode() == f"a{INVALID}雪{INVALID}t{INVALID} 😀{INVALID}{INVALID}"
    assert broken.invalid


def test_json_line_longer_than_a_block_is_one_fault(tmp_path, config_for, rows):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl_bytes(rows[:5]) + b'{"text": "' + b"x" * (BLOCK_BYTES + 9) + b'"}\n' + jsonl_bytes(rows[5:]))
    report = inspect_source(config_for(path))
    assert [problem.where for problem in report.problems] == [f"{path}, row 6"]
    assert report.rows == {"train": 40}
