from __future__ import annotations

import ast
import sys

import pytest
from google.protobuf import text_format
from tiny_package import LABELS, build_package, settings_of
from tritonclient.grpc import model_config_pb2

from stillhouse.errors import InputError, ManifestError
from stillhouse.serving.repository import model_version, name_problems, set_model_version, write_repository
from stillhouse.tasks import get_task


def config_of(path):
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def test_layout_and_contract(tmp_path):
    package = build_package(tmp_path / "package")
    triton = package / "triton"
    assert sorted(p.relative_to(triton).as_posix() for p in triton.rglob("*") if p.is_file()) == [
        "reviews-encoder/1/model.onnx",
        "reviews-encoder/config.pbtxt",
        "reviews/1/model.py",
        "reviews/1/settings.json",
        "reviews/1/tokenizer.json",
        "reviews/config.pbtxt",
    ]
    front = config_of(triton / "reviews" / "config.pbtxt")
    assert (front.name, front.backend, front.max_batch_size) == ("reviews", "python", 8)
    assert front.HasField("dynamic_batching")
    assert [(i.name, i.data_type, list(i.dims)) for i in front.input] == [("TEXT", model_config_pb2.TYPE_STRING, [1])]
    assert [(o.name, o.data_type, list(o.dims)) for o in front.output] == [
        ("PROBABILITIES", model_config_pb2.TYPE_FP32, [len(LABELS)]),
        ("LABEL", model_config_pb2.TYPE_STRING, [1]),
    ]
    encoder = config_of(triton / "reviews-encoder" / "config.pbtxt")
    assert (encoder.backend, encoder.max_batch_size) == ("onnxruntime", 8)
    assert encoder.parameters["intra_op_thread_count"].string_value == "1"
    assert [list(i.dims) for i in encoder.input] == [[-1], [-1]]
    assert [list(w.inputs["input_ids"].dims) for w in encoder.model_warmup] == [[16], [24]]
    assert encoder.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    settings = settings_of(package)
    assert settings["encoder"] == "reviews-encoder"
    assert settings["pad_id"] == 0
    assert settings["label_names"] == list(LABELS)


def test_front_model_is_verbatim_and_standalone(tmp_path):
    package = build_package(tmp_path / "package")
    source = get_task("classification").front_model.read_bytes()
    assert (package / "triton" / "reviews" / "1" / "model.py").read_bytes() == source
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "tokenizers", "triton_python_backend_utils"}


def test_gpu_puts_the_encoder_alone_on_it(tmp_path):
    parts = build_package(tmp_path / "package").with_name("package.parts")
    task = get_task("classification")
    write_repository(
        tmp_path / "gpu",
        served_name="m",
        encoder=parts / "encoder.onnx",
        tokenizer=parts / "tokenizer.json",
        front_model=task.front_model,
        outputs=task.outputs(LABELS),
        label_names=LABELS,
        max_length=8,
        max_text_bytes=10,
        max_batch_size=2,
        gpu=True,
    )
    encoder = config_of(tmp_path / "gpu" / "m-encoder" / "config.pbtxt")
    assert encoder.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert "intra_op_thread_count" not in encoder.parameters
    assert [list(w.inputs["input_ids"].dims) for w in encoder.model_warmup] == [[8]]
    front = config_of(tmp_path / "gpu" / "m" / "config.pbtxt")
    assert front.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU


def test_all_problems_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        build_package(tmp_path / "package", served_name="../up", max_length=0, max_text_bytes=-1, max_batch_size=0)
    assert [p.where for p in caught.value.problems] == [
        "model_name",
        "max_length",
        "max_text_bytes",
        "max_batch_size",
    ]
    assert not (tmp_path / "package" / "triton").exists()


@pytest.mark.parametrize("name", ["a", "sst2-student", "A.b_c-9", "x" * 63])
def test_good_names(name):
    assert name_problems(name) == []


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "x" * 64, "ä", "a\n", 'a"'])
def test_bad_names(name):
    (problem,) = name_problems(name)
    assert problem.where == "model_name"


def test_version_folders_are_renamed(tmp_path):
    triton = build_package(tmp_path / "package") / "triton"
    assert model_version(triton, "reviews") == "1"
    set_model_version(triton, "reviews", "12")
    set_model_version(triton, "reviews", "12")
    assert model_version(triton, "reviews") == "12"
    assert (triton / "reviews-encoder" / "12" / "model.onnx").is_file()
    assert (triton / "reviews" / "12" / "tokenizer.json").is_file()


@pytest.mark.parametrize("version", ["0", "v2", "", "-1", "1.0", "../1"])
def test_versions_are_numbers(tmp_path, version):
    with pytest.raises(InputError, match="version"):
        set_model_version(tmp_path, "reviews", version)


def test_not_exactly_one_version(tmp_path):
    with pytest.raises(ManifestError, match="none"):
        model_version(tmp_path, "reviews")
    (tmp_path / "reviews" / "1").mkdir(parents=True)
    (tmp_path / "reviews" / "2").mkdir()
    with pytest.raises(ManifestError, match="1, 2"):
        model_version(tmp_path, "reviews")
