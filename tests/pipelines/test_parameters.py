"""Parameters, presets and settings."""

import inspect
from pathlib import Path

import pytest

from stillhouse.errors import InputError
from stillhouse.pipelines.parameters import arguments_for, parameters, preset_names, read_preset
from stillhouse.pipelines.train_and_deploy import train_and_deploy


def test_every_parameter_is_typed_and_described_and_only_data_must_be_given():
    known = parameters()
    assert list(known) == list(inspect.signature(train_and_deploy.pipeline_func).parameters)
    assert [p.name for p in known.values() if not p.description] == []
    assert [p.name for p in known.values() if p.default is None] == ["data"]


def test_the_names_that_users_learn_first():
    fixed = ("task data validation_data test_data text_column label_column max_train_rows max_validation_rows "
             "max_test_rows teacher albert model_name policy min_retention deploy_target")  # fmt: skip
    assert set(fixed.split()) <= set(parameters())


@pytest.mark.parametrize("name", ["base", "demo", "large", "small", "tiny"])
def test_every_preset_parses_to_known_parameters_of_the_right_type(name: str):
    assert name in preset_names()
    values, problems = arguments_for(name, ["data=x.csv"])
    assert problems == []
    for key in read_preset(name):
        assert isinstance(values[key], parameters()[key].type), key


def test_settings_are_read_as_the_parameters_type():
    values, problems = arguments_for(
        "tiny", ["max_train_rows=10", "min_retention=1", "text_column=7", "data=a=b.csv", "teacher_epochs=0.5"]
    )
    assert problems == []
    assert values["max_train_rows"] == 10
    assert values["min_retention"] == 1.0
    assert isinstance(values["min_retention"], float)
    assert values["text_column"] == "7"  # a column may be called that
    assert values["data"] == "a=b.csv"
    assert values["teacher_epochs"] == 0.5


def test_all_that_is_wrong_is_reported_at_once():
    values, problems = arguments_for(
        "nope", ["max_train_rows=ten", "polcy=memory", "seed=1.5", "min_retention=nan", "novalue"]
    )
    assert {p.where for p in problems} == {"--preset", "max_train_rows", "polcy", "seed", "min_retention", "--set"}
    assert "policy" in next(p for p in problems if p.where == "polcy").remedy
    assert "max_train_rows" in values  # the rest can still be checked


def test_data_must_be_given_where_the_preset_has_none():
    _, problems = arguments_for("base", [])
    assert [p.where for p in problems] == ["data"]


def test_a_file_of_ones_own_is_a_preset(tmp_path: Path):
    own = tmp_path / "ours.yaml"
    own.write_text(
        "preset: demo\ndata: ours.csv\npolicy: memory\nseed: 7\nserving_values:\n  resources: {limits: {memory: 2Gi}}\n"
    )
    values, problems = arguments_for(str(own), ["seed=8"], cluster={"policy": "quality", "teacher": "hub://a/b"})
    assert problems == []
    assert (values["data"], values["teacher"]) == ("ours.csv", "hub://a/b"), "the cluster goes before the demo"
    assert values["policy"] == "memory", "and the file before the cluster"
    assert values["seed"] == 8, "and a setting before the file"
    assert values["serving_values"] == {"resources": {"limits": {"memory": "2Gi"}}}
    assert values["max_length"] == arguments_for("demo", [])[0]["max_length"]
    own.write_text("data: ours.csv\n")  # starts from the parameters' own defaults
    assert arguments_for(str(own), [])[0]["teacher"] == parameters()["teacher"].default


def test_all_that_is_wrong_with_a_file_of_ones_own_is_told(tmp_path: Path):
    own = tmp_path / "ours.yaml"
    own.write_text("preset: huge\nseed: 1\nseed: 2\n")
    _, problems = arguments_for(str(own), ["polcy=memory"])
    assert [p.where for p in problems][-1] == "polcy"
    assert {p.where for p in problems} >= {f"{own}: line 3", f"{own}: preset", "polcy"}
    own.write_text("data: ours.csv\nsed: 3\npolicy: [memory]\n3: 4\n")
    assert {p.where for p in arguments_for(str(own), [])[1]} == {"sed", "3"}
    for text in ("- data", "a: [", ""):
        own.write_text(text)
        assert str(own) in [p.where for p in arguments_for(str(own), [])[1]]
    (problem, *_) = arguments_for(str(tmp_path / "absent.yaml"), [])[1]
    assert problem.where == "--preset" and "No such file" in problem.what


def test_an_unknown_preset_names_the_known():
    with pytest.raises(InputError, match="base, demo, large, small, tiny"):
        read_preset("huge")
