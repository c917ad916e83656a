"""Parameters, presets and settings."""

import inspect

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


def test_an_unknown_preset_names_the_known():
    with pytest.raises(InputError, match="base, demo, large, small, tiny"):
        read_preset("huge")
