"""The pretraining pipeline: its parameters, its presets, its wiring, and Kubeflow's view of it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_stand_in import StandIn

from stillhouse.pipelines.__main__ import _compile
from stillhouse.pipelines.catalogue import PRETRAIN
from stillhouse.pipelines.local import LocalSteps, local_defaults
from stillhouse.pipelines.parameters import arguments_for, parameters, preset_names, read_preset

COMPILED = Path(__file__).resolve().parents[2] / "pipelines" / "compiled"
CORPUS = ("--set", "corpus=s3://bucket/corpus/")


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = next(yaml.safe_load_all((COMPILED / f"pretrain-{request.param}.yaml").read_text("utf-8")))
    return found


def steps(spec: dict[str, Any]) -> dict[str, Any]:
    dags = [spec["root"], *(c for c in spec["components"].values() if "dag" in c)]
    tasks = {name: task for part in dags for name, task in part["dag"]["tasks"].items()}
    return {name: task for name, task in tasks.items() if "dag" not in spec["components"][task["componentRef"]["name"]]}


def test_every_parameter_is_typed_and_described_and_only_the_corpus_must_be_given():
    known = parameters(PRETRAIN)
    assert list(known) == list(inspect.signature(PRETRAIN.component.pipeline_func).parameters)
    assert [p.name for p in known.values() if not p.description] == []
    assert [p.name for p in known.values() if p.default is None] == ["corpus"]


def test_the_defaults_are_the_library_s():
    from dataclasses import MISSING, fields

    from stillhouse.pretraining import CorpusConfig, PretrainConfig

    known = parameters(PRETRAIN)
    every = [field for config in (CorpusConfig, PretrainConfig) for field in fields(config)]
    library = {field.name: field.default for field in every if field.default is not MISSING}
    library["model_name"] = library.pop("name")
    del library["code_version"]
    assert {name: known[name].default for name in library} == library


@pytest.mark.parametrize("name", ["albert-base", "bert-base", "distilbert-base", "small", "tiny"])
def test_every_preset_is_sound(name: str):
    from stillhouse.inspection.pretraining import parameter_problems

    assert name in preset_names(PRETRAIN)
    values, problems = arguments_for(name, ["corpus=corpus/", "tracking_uri=https://mlflow.invalid"], pipeline=PRETRAIN)
    assert problems == []
    for key in read_preset(name, PRETRAIN):
        assert isinstance(values[key], parameters(PRETRAIN)[key].type), key
    # Without the hub, which only the checkpoints would be looked up on.
    assert parameter_problems(values, checkpoints=False) == []


def test_a_missing_corpus_and_the_other_pipeline_s_parameters_are_told():
    _, problems = arguments_for("bert-base", ["policy=memory"], pipeline=PRETRAIN)
    assert {problem.where for problem in problems} == {"corpus", "policy"}


def test_paths_are_made_absolute_and_references_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    values, _ = arguments_for("tiny", ["corpus=texts", "teacher=bert", "output=out"], pipeline=PRETRAIN)
    filled = local_defaults(values, PRETRAIN)
    for name, value in (("corpus", "texts"), ("teacher", "bert"), ("output", "out")):
        assert filled[name] == str(tmp_path / value)
    assert filled["tokenizer"].startswith("train://") and filled["model"].startswith("scratch://")
    assert filled["tracking_uri"].startswith("sqlite:///") and filled["checkpoint_dir"].endswith("/checkpoints")


def test_the_first_step_is_given_every_parameter(spec: dict[str, Any]):
    inspected = spec["components"]["comp-inspect-corpus"]["inputDefinitions"]["parameters"]
    assert set(inspected) == set(spec["root"]["inputDefinitions"]["parameters"])


def test_the_steps_and_which_of_them_are_cached(spec: dict[str, Any]):
    assert list(LocalSteps(PRETRAIN.component.pipeline_spec).titles.items()) == [
        ("inspect-corpus", "Inspect corpus"), ("prepare-corpus", "Prepare corpus"), ("pretrain", "Pretrain"),
        ("record-pretraining", "Record the curves"), ("notify", "Notify"),
    ]  # fmt: skip
    tasks = steps(spec)
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached == {"prepare-corpus", "pretrain"}
    inputs = {name: tasks[name]["inputs"]["parameters"] for name in cached}

    def source(step: str, name: str) -> str:
        found = inputs[step][name]["taskOutputParameter"]
        assert found["producerTask"] == "inspect-corpus"
        return str(found["outputParameterKey"])

    assert source("prepare-corpus", "fingerprint") == "fingerprint"
    assert source("prepare-corpus", "code_version") == "corpus_version"
    assert source("pretrain", "code_version") == "pretrain_version"


def test_what_a_run_would_be_refused_is_no_default(capsys: Any):
    settings = ["corpus=texts/", "teacher=here", "objective=mlx", "output=out", "num_nodes=0", "stepz=1", "steps=0"]
    assert _compile("gpu", "", settings, "pretrain") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert all(f"  {setting.partition('=')[0]}: " in said.err for setting in settings)
    assert _compile("gpu", "", [], "sing") == 2
    assert "Choose one of: train-and-deploy, pretrain" in capsys.readouterr().err


def test_it_compiles_with_the_corpus_left_open(capsys: Any):
    assert _compile("gpu", "albert-base", ["gpus_per_node=4"], "pretrain") == 0
    body = next(yaml.safe_load_all(capsys.readouterr().out))
    inputs = body["root"]["inputDefinitions"]["parameters"]
    assert body["pipelineInfo"]["name"] == "stillhouse-pretrain"
    assert [name for name, given in inputs.items() if not given.get("isOptional")] == ["corpus"]
    assert (inputs["objective"]["defaultValue"], inputs["gpus_per_node"]["defaultValue"]) == ("mlm+sop", 4)


def test_it_is_submitted_and_scheduled_beside_the_main_pipeline(kubeflow: StandIn, command: Any):
    code, events = command("submit", "--workflow", "pretrain", *CORPUS, "--set", "model_name=ours")
    assert code == 0, events
    (run,) = kubeflow.runs.values()
    assert run.runtime_config.parameters == {"corpus": "s3://bucket/corpus/", "model_name": "ours"}
    code, made = command("schedule", "create", "monthly", "--workflow", "pretrain", "--every", "30d", *CORPUS)
    assert code == 0, made
    (schedule,) = kubeflow.recurring.values()
    assert schedule.runtime_config.parameters == {"corpus": "s3://bucket/corpus/"}  # no skip_unchanged, as it has none
    assert [p.name for p in kubeflow.pipelines.values()] == ["stillhouse-pretrain-gpu"]
    code, events = command("submit", "--workflow", "pretrain", "--set", "corpus=texts/", "--set", "model=here")
    assert code == 2
    assert {problem["where"] for problem in events[-1]["problems"]} == {"corpus", "model"}


def test_it_is_published_beside_the_main_pipeline(kubeflow: StandIn, command: Any, tmp_path: Path):
    path = tmp_path / "publish.yaml"
    content = {
        "pipelines": [{"cluster": "cpu", "workflow": "pretrain"}],
        "schedules": [{"name": "monthly", "workflow": "pretrain", "cluster": "cpu", "every": "30d",
                       "parameters": {"corpus": "s3://bucket/corpus/"}}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    code, made = command("publish", str(path))
    assert code == 0, made
    assert [one["pipeline"] for one in made["result"]["pipelines"]] == ["stillhouse-pretrain-cpu"]
    assert made["result"]["schedules"][0]["model_name"] == "bert-small"
    path.write_text(yaml.safe_dump({"pipelines": [{"workflow": "sing"}]}))
    code, refused = command("publish", str(path))
    assert code == 2
    assert [problem["where"] for problem in refused["error"]["problems"]] == ["publish.yaml: pipelines.0: workflow"]


def test_all_that_is_wrong_with_a_run_is_said_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
):
    from stillhouse.pipelines import __main__ as command_line

    monkeypatch.setattr(command_line, "end_with_parent", lambda: None)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    monkeypatch.setenv("STILLHOUSE_EVENTS", str(tmp_path / "events.jsonl"))
    settings = [f"corpus={tmp_path}/none.txt", "objective=triple", "stepz=1", "steps=few"]
    given = [part for setting in settings for part in ("--set", setting)]
    command = ["x", "run", "--workflow", "pretrain", "--preset", "tiny", "--run-dir", str(tmp_path), *given]
    monkeypatch.setattr("sys.argv", command)
    assert command_line.main() == 2
    said = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (said[-1]["step"], said[-1]["event"], said[-1]["exit_code"]) == ("run", "failed", 2)
    assert {problem["where"] for problem in said[-1]["problems"]} == {"stepz", "steps", "corpus", "model", "teacher"}
