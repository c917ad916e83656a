"""`stillhouse compile` refuses what `submit` refuses, and shows no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.pipelines.__main__ import _compile


def refused(capsys: Any, *arguments: Any) -> str:
    assert _compile(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return str(said.err)


def test_what_a_run_would_be_refused_is_no_default(capsys: Any, tmp_path: Path):
    settings = ["policy=fast", "num_nodes=0", "deploy_target=local", "data=rows.csv", "checkpoint_dir=here", "sed=1"]
    said = refused(capsys, "gpu", "", settings)
    assert f"{len(settings)} problems" in said
    assert all(f"  {setting.partition('=')[0]}: " in said for setting in settings)
    path = tmp_path / "ours.yaml"
    path.write_text("parameters: {policy: fast, deploy_target: local}\nimages: {tag: 2.0}\n")
    said = refused(capsys, str(path), "huge", ["seed=x"])
    assert all(f"{name}: " in said for name in ("policy", "deploy_target", "images.tag", "--preset", "seed"))


@pytest.mark.parametrize("setting", ["tracking_uri=https://ada:hunter2@mlflow", "data=s3://AKIA:hunter2@bucket/x"])
def test_passwords_do_not_get_into_the_pipeline(capsys: Any, setting: str):
    said = refused(capsys, "gpu", "", [setting])
    assert "1 problem" in said and setting.partition("=")[0] in said
    assert "hunter2" not in said


def test_what_each_run_gives_may_be_left_open(capsys: Any):
    assert _compile("gpu", "demo", ["gpus_per_node=2"]) == 0
    inputs = next(yaml.safe_load_all(capsys.readouterr().out))["root"]["inputDefinitions"]["parameters"]
    defaults = {name: inputs[name]["defaultValue"] for name in ("gpus_per_node", "checkpoint_dir", "deploy_target")}
    assert defaults == {"gpus_per_node": 2, "checkpoint_dir": "", "deploy_target": "none"}
