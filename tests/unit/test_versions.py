"""Code versions change with exactly the code and libraries that a step depends on."""

import importlib.metadata
import shutil
from pathlib import Path

import pytest

from stillhouse import versions
from stillhouse.tasks.base import Task


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the library's sources that may be edited."""
    copy = tmp_path / "stillhouse"
    shutil.copytree(Path(versions.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(versions, "_ROOT", copy)
    return copy


def changed(before: dict[str, str]) -> set[str]:
    return {step for step, version in versions.step_versions().items() if version != before[step]}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("data/readers.py", {"prepare_data"}),
        ("objectives/distillation.py", {"train", "package", "evaluate"}),  # tasks, which all three use, hold the losses
        ("training/trainer.py", {"train"}),
        ("export/onnx.py", {"package"}),
        *((f"tasks/front_models/{part}", {"package"}) for part in ("text_classification.py", *Task.front_parts)),
        ("evaluation/policy.py", {"evaluate"}),
        ("evaluation/templates/report.html.j2", {"evaluate"}),
        ("errors.py", {"prepare_data", "train", "package", "evaluate"}),
        ("cli/main.py", set()),
        ("registry/register.py", set()),
    ],
)
def test_an_edit_reaches_just_the_steps_that_import_it(tree: Path, module: str, expected: set[str]):
    before = versions.step_versions()
    path = tree / module
    path.write_text(path.read_text() + "\n# edited\n")
    assert changed(before) == expected


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("onnxscript", set()),
        ("onnxruntime", {"package", "evaluate"}),
        ("tokenizers", {"train", "package", "evaluate"}),
        ("pyarrow", {"prepare_data", "train", "package", "evaluate"}),
        ("kfp", set()),
    ],
)
def test_another_release_of_a_library_reaches_just_the_steps_that_use_it(
    monkeypatch: pytest.MonkeyPatch, library: str, expected: set[str]
):
    before = versions.step_versions()
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name.lower() == library else real(name))
    assert changed(before) == expected


def test_versions_are_the_same_each_time():
    assert versions.step_versions() == versions.step_versions()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("data/corpus.py", {"prepare_corpus"}),
        ("pretraining/corpus.py", {"prepare_corpus"}),
        ("pretraining/trainer.py", {"pretrain"}),
        ("objectives/masking.py", {"pretrain"}),
        ("pretraining/shards.py", {"prepare_corpus", "pretrain"}),
        ("registry/pretraining.py", set()),
    ],
)
def test_an_edit_reaches_just_the_steps_of_pretraining_that_import_it(tree: Path, module: str, expected: set[str]):
    def now() -> dict[str, str]:
        return versions.step_versions(versions.PRETRAINING_MODULES)

    before, others = now(), versions.step_versions()
    path = tree / module
    path.write_text(path.read_text() + "\n# edited\n")
    assert {step for step, version in now().items() if version != before[step]} == expected
    if module.startswith(("pretraining", "registry")):
        assert versions.step_versions() == others  # the main pipeline's steps are none of its business
