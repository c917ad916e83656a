"""Bad input: every fault is named, all at once, and nothing is raised or written."""

from __future__ import annotations

import gzip
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.data.prepare import inspect_source, prepare_dataset
from stillhouse.data.scan import MAX_ROW_BYTES
from stillhouse.errors import InputError

GOOD = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(30))


def problems_of(config):
    return [(problem.where, problem.what) for problem in inspect_source(config).problems]


def only(config):
    """The one problem there is, as text."""
    report = inspect_source(config)
    assert len(report.problems) == 1, report.problems
    return str(report.problems[0])


@pytest.fixture
def source(tmp_path, config_for):
    """A config for a file of the given content."""

    def make(content, name="rows.csv", **fields):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return config_for(path, **fields)

    return make


def test_everything_wrong_with_one_csv_file_at_once(source, tmp_path):
    lines = [f"text {i},{'ab'[i % 2]}".encode() for i in range(40)]
    lines[1] = b",a"  # row 2
    lines[2] = b"  NaN ,b"
    lines[3] = b"text 3,"
    lines[4] = b"text 4,NA"
    lines[6] = b"caf\xe9 6,a"  # row 7
    lines[8] = b"one,two,three"  # row 9
    lines[9] = b",b"  # row 10, right after a row that is skipped
    lines[10] = b"alone"  # row 11
    lines[12] = b"caf\xe9,too,many"  # row 13: ragged and not UTF-8
    lines[14] = b"x" * 10_000_000 + b",a"  # row 15
    lines[16] = b'"over\ntwo lines, with ""quotes""",a'
    lines[18] = b",a"  # row 19, after a row that is two lines long
    (tmp_path / "test.csv").write_text("text,label\nfine,a\nodd,c\n\nodder,d\n")
    config = source(b"text,label\n" + b"\n".join(lines), test_data=str(tmp_path / "test.csv"))
    path = config.data
    found = dict(problems_of(config))
    assert set(found) == {
        f"{path}, rows 2, 3, 10, 19",
        f"{path}, rows 4, 5",
        f"{path}, rows 7, 13",
        f"{path}, rows 9, 11, 13",
        f"{path}, row 15",
        "test_data",
    }
    assert "the text (column 'text') is empty" in found[f"{path}, rows 2, 3, 10, 19"]
    assert "the label (column 'label') is empty" in found[f"{path}, rows 4, 5"]
    assert "not UTF-8" in found[f"{path}, rows 7, 13"]
    assert "the header has 2 cells, the first such row has 3" in found[f"{path}, rows 9, 11, 13"]
    assert "is 10,000,001 bytes long; 1,000,000 are allowed" in found[f"{path}, row 15"]
    assert "'c', 'd' (2 rows, the first is row 2)" in found["test_data"]
    with pytest.raises(InputError) as raised:
        prepare_dataset(config, tmp_path / "out", fingerprint="")
    assert [(p.where, p.what) for p in raised.value.problems] == list(found.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv", "test.csv"]


def test_everything_wrong_with_one_json_lines_file_at_once(source):
    lines = [json.dumps({"text": f"text {i}", "label": i % 2}).encode() for i in range(30)]
    lines[1] = b'{"text": null, "label": 1}'
    lines[2] = b'{"text": NaN, "label": 1}'
    lines[3] = b'{"text": "x"}'
    lines[4] = b"{not json"
    lines[5] = b"[1, 2]"
    lines[6] = b'{"text": ["x"], "label": 1}'
    lines[7] = b'{"text": "caf\xe9", "label": 1}'
    lines[8] = b'{"text": "\\ud800", "label": 1}'
    lines[9] = b""
    config = source(b"\n".join(lines), "rows.jsonl")
    path = config.data
    found = dict(problems_of(config))
    assert set(found) == {
        f"{path}, rows 2, 3",
        f"{path}, row 4",
        f"{path}, row 5",
        f"{path}, row 6",
        f"{path}, row 7",
        f"{path}, rows 8, 9",
    }
    assert "is not JSON" in found[f"{path}, row 5"]
    assert "is a JSON list" in found[f"{path}, row 6"]
    assert "holds a list" in found[f"{path}, row 7"]
    assert "not UTF-8" in found[f"{path}, rows 8, 9"]


def test_everything_wrong_with_one_parquet_file_at_once(tmp_path, config_for):
    texts = [f"text {i}".encode() for i in range(30)]
    texts[1], texts[2], texts[3] = b" ", b"caf\xe9", b"x" * (MAX_ROW_BYTES + 1)
    labels = [float(i % 2) for i in range(30)]
    labels[4], labels[5] = math.nan, None
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": pa.array(texts, pa.binary()), "label": labels}), path)
    found = [where for where, _ in problems_of(config_for(path))]
    assert sorted(found) == [f"{path}, row 2", f"{path}, row 3", f"{path}, row 4", f"{path}, rows 5, 6"]


def test_faults_of_the_parameters_and_of_all_sources_come_together(tmp_path, config_for, source):
    config = source(
        "text,label\n" + GOOD,
        text="txet",
        validation_data=str(tmp_path / "none.csv"),
        test_data="ftp://host/x.csv",
        max_train_rows=-1,
        validation_fraction=1.5,
        test_fraction=math.nan,
        seed=-1,
    )
    found = inspect_source(config).problems
    assert {problem.where for problem in found} == {
        "text_column",
        "validation_data",
        "test_data",
        "max_train_rows",
        "validation_fraction",
        "test_fraction",
        "seed",
    }
    column = next(problem for problem in found if problem.where == "text_column")
    assert "has no column 'txet'; it has: text, label." in column.what
    assert column.remedy == "Did you mean 'text'?"


def test_many_bad_rows_are_one_problem_with_examples_and_a_count(source):
    config = source("text,label\n" + GOOD + ",a\n" * 1000)
    assert f"{config.data}, rows 31, 32, 33, 34, 35 and 995 more: " in only(config)


def test_missing_file(config_for, tmp_path):
    assert only(config_for(tmp_path / "none.csv")).startswith(f"data: {tmp_path / 'none.csv'}: there is no such file")


def test_empty_parameter(config_for):
    assert only(config_for(" ")).startswith("data: is empty.")


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.parquet", "rows.csv.gz"])
def test_empty_file(source, name):
    content = gzip.compress(b"") if name.endswith("gz") else b""
    assert ": is empty." in only(source(content, name))


@pytest.mark.parametrize("content", ["text,label", "text,label\n", "text,label\r\n\r\n"])
def test_header_without_rows(source, content):
    assert "has a header but no rows" in only(source(content))


def test_parquet_without_rows(tmp_path, config_for):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), path)
    assert "no rows" in only(config_for(path))


def test_json_key_that_no_object_has_and_one_that_comes_late(source):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(40_000)]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    assert "has no column 'kind'; it has: text, label." in only(source(content, "rows.jsonl", label="kind"))
    rows[-1]["kind"], rows[-2]["kind"] = "c", "d"
    config = source("".join(json.dumps(row) + "\n" for row in rows), "rows.jsonl", label="kind")
    assert f"{config.data}, rows 1, 2, 3, 4, 5 and 39,993 more: the label (column 'kind') is empty" in only(config)


def test_duplicated_column(source):
    assert "has 2 columns named 'text'" in only(source("text,text,label\na,b,c\nd,e,f\n"))


def test_duplicated_columns_that_are_not_wanted_do_no_harm(source):
    rows = "".join(f"x,text {i},y,{'ab'[i % 2]}\n" for i in range(30))
    assert inspect_source(source(f"other,text,other,label\n{rows}")).problems == ()


def test_one_column_for_both(source):
    assert only(source("text,label\n" + GOOD, label="text")).startswith("label_column: names the same column as text_c")


def test_semicolons(source):
    report = inspect_source(source("text;label\nx;a\ny;b\n"))
    assert {problem.where for problem in report.problems} >= {"text_column", "label_column"}
    assert "separated by semicolons" in report.problems[0].remedy


def test_one_class_only(source):
    assert "one class only: every 'label' is 'a'" in only(
        source("text,label\n" + "".join(f"t{i},a\n" for i in range(9)))
    )


def test_fewer_rows_than_labels(source):
    assert "3 rows for 3 different labels are too few to split" in only(source("text,label\na,1\nb,2\nc,3\n"))


def test_too_few_rows_to_split(source):
    found = problems_of(source("text,label\na,1\nb,2\nc,1\nd,2\n"))
    assert [where for where, _ in found] == ["data", "data"]
    assert "too few to split validation rows off (validation_fraction is 0.1)" in found[0][1]


def test_a_limit_below_the_number_of_labels(source):
    assert only(source("text,label\n" + GOOD, max_train_rows=1)).startswith("max_train_rows: is 1, fewer than the 2")


def test_fractions_that_leave_nothing(source):
    assert "leave no rows to train on" in only(
        source("text,label\n" + GOOD, validation_fraction=0.5, test_fraction=0.5)
    )


def test_more_labels_than_any_task_has(source):
    rows = "".join(f"text {i},label {i}\n" for i in range(12_000))
    assert "has more than 10,000 different values in 'label'" in only(source("text,label\n" + rows))


@pytest.mark.parametrize(("mark", "codec"), [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")])
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_utf16(source, mark, codec, name):
    content = "text,label\nx,a\n" if name.endswith("csv") else '{"text": "x", "label": "a"}\n'
    assert "is UTF-16, not UTF-8" in only(source(mark + content.encode(codec), name))


def test_header_that_is_not_utf8(source):
    assert ", header: is not UTF-8" in only(source(b"text,label,caf\xe9\nx,a,b\n"))


def test_bad_bytes_in_a_column_that_is_not_read_do_no_harm(source):
    rows = b"".join(b"text %d,%s,caf\xe9\n" % (i, b"ab"[i % 2 : i % 2 + 1]) for i in range(30))
    assert inspect_source(source(b"text,label,other\n" + rows)).problems == ()


def test_unknown_suffix_and_mixed_and_empty_folders(tmp_path, config_for, source):
    assert "its format is not known from its name (.xlsx)" in only(source(b"x", "rows.xlsx"))
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "holds no file ending in .csv" in only(config_for(folder))
    (folder / "a.csv").write_text("x")
    (folder / "b.tsv").write_text("x")
    assert "mixes formats: csv, tsv" in only(config_for(folder))


@pytest.mark.parametrize("tail", ['last,"b\nnever closed,a\n', '"never closed,a\nlast,b\n'])
def test_quotation_mark_never_closed(source, tail):
    found = inspect_source(source("text,label\n" + GOOD + tail)).problems
    assert any("opens a quotation mark that is never closed" in problem.what for problem in found)


def test_a_row_too_long_to_parse_says_what_was_not_checked(source):
    text = only(source(b"text,label\n" + GOOD.encode() + b"x" * 40_000_000 + b",a\n"))
    assert "is longer than 12 MB; the rows after it were not checked" in text


def test_broken_gzip_and_parquet(source):
    assert "is not a whole gzip file" in only(
        source(gzip.compress(b"text,label\n" + GOOD.encode())[:-9], "rows.csv.gz")
    )
    assert "is not a whole gzip file" in only(source("text,label\nx,a\n", "plain.csv.gz"))
    assert "is not a whole Parquet file" in only(source("text,label\nx,a\n", "rows.parquet"))


def test_a_column_of_lists(tmp_path, config_for):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [["x"]] * 30, "label": ["a", "b"] * 15}), path)
    assert "column 'text' holds list<" in only(config_for(path))


def test_a_lone_quotation_mark_within_text_is_fine(source):
    assert inspect_source(source('text,label\na 5" pipe,a\n' + GOOD)).problems == ()
