from __future__ import annotations

import ast
import json
import sys

import pytest
from google.protobuf import text_format
from tiny_package import LABELS, build_package, settings_of
from tritonclient.grpc import model_config_pb2

from stillhouse.errors import InputError, ManifestError
from stillhouse.serving.repository import model_version, name_problems, set_model_version
from stillhouse.tasks import get_task


def config_of(path):
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def test_layout_and_contract(tmp_path):
    package = build_package(tmp_path / "package")
    triton = package / "triton"
    assert sorted(p.relative_to(triton).as_posix() for p in triton.rglob("*") if p.is_file()) == [
        "reviews-encoder/1/model.onnx",
        "reviews-encoder/config.pbtxt",
        "reviews/1/batch_queue.py",
        "reviews/1/encoder_session.py",
        "reviews/1/model.py",
        "reviews/1/queue_metrics.py",
        "reviews/1/request_log.py",
        "reviews/1/settings.json",
        "reviews/1/tokenizer.json",
        "reviews/config.pbtxt",
    ]
    front = config_of(triton / "reviews" / "config.pbtxt")
    assert (front.name, front.backend, front.max_batch_size) == ("reviews", "python", 8)
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
    task = get_task("classification")
    parts = {"model.py": task.front_model, **{name: task.front_model.with_name(name) for name in task.front_parts}}
    imported: dict[str, set[str]] = {name: set() for name in parts}
    for name, path in parts.items():
        source = path.read_bytes()
        assert (package / "triton" / "reviews" / "1" / name).read_bytes() == source
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported[name] |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported[name].add(node.module.split(".")[0])
    beyond = {name: modules - set(sys.stdlib_module_names) for name, modules in imported.items()}
    # NVIDIA's image has no onnxruntime for Python, so that one is imported only where a package asks for it.
    assert beyond.pop("encoder_session.py") == {"numpy", "onnxruntime"}
    assert set().union(*beyond.values()) == {"numpy", "tokenizers", "triton_python_backend_utils"}


def test_clients_can_read_what_they_talk_to(tmp_path):
    names = ["plain", 'quo"ted', "back\\slash", "ümläut 日本", "new\nline"]
    package = build_package(tmp_path / "package", label_names=names, max_text_bytes=123)
    parameters = config_of(package / "triton" / "reviews" / "config.pbtxt").parameters
    assert parameters["task"].string_value == "classification"
    assert json.loads(parameters["label_names"].string_value) == names
    assert parameters["max_text_bytes"].string_value == "123"


def test_the_queue_is_the_front_models_own(tmp_path):
    """Triton's loses requests as soon as it has limits."""
    package = build_package(tmp_path / "package", max_queue_size=12, max_wait_ms=250, batch_rows=5, encoder_instances=2)
    front = config_of(package / "triton/reviews/config.pbtxt")
    assert not front.HasField("dynamic_batching")
    assert front.instance_group[0].count == 1
    wanted = {"max_queue_size": 12, "max_wait_ms": 250, "batch_rows": 5, "encoder_instances": 2}
    assert {**wanted, "encoder_in_front": False}.items() <= settings_of(package).items()


def test_the_front_model_is_told_to_run_its_encoder(tmp_path):
    package = build_package(tmp_path / "package", encoder_in_front=True, encoder_threads=3)
    assert {"encoder_in_front": True, "encoder_threads": 3}.items() <= settings_of(package).items()
    # It can be called by itself all the same.
    assert config_of(package / "triton/reviews-encoder/config.pbtxt").backend == "onnxruntime"


def test_the_front_model_runs_one_encoder_on_a_cpu(tmp_path):
    with pytest.raises(InputError) as caught:
        build_package(tmp_path / "package", encoder_in_front=True, encoder_instances=2, serving_device="gpu")
    assert [problem.where for problem in caught.value.problems] == ["encoder_in_front"] * 2
    assert "serving_device=cpu" in str(caught.value) and "encoder_instances=1" in str(caught.value)


def test_serving_options_reach_the_configuration(tmp_path):
    package = build_package(tmp_path / "package", encoder_instances=3, encoder_threads=5, response_cache=True)
    encoder = config_of(package / "triton/reviews-encoder/config.pbtxt")
    assert encoder.instance_group[0].count == 3
    assert encoder.parameters["intra_op_thread_count"].string_value == "5"
    assert config_of(package / "triton/reviews/config.pbtxt").response_cache.enable
    plain = build_package(tmp_path / "plain", encoder_threads=0)
    encoder = config_of(plain / "triton/reviews-encoder/config.pbtxt")
    assert "intra_op_thread_count" not in encoder.parameters
    assert not encoder.HasField("dynamic_batching")  # the front model's calls are batches already
    assert not config_of(plain / "triton/reviews/config.pbtxt").response_cache.enable


def test_gpu_puts_the_encoder_alone_on_it(tmp_path):
    package = build_package(
        tmp_path / "package", max_length=8, max_batch_size=2, serving_device="gpu", encoder_threads=0
    )
    encoder = config_of(package / "triton/reviews-encoder/config.pbtxt")
    assert encoder.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert [(w.batch_size, list(w.inputs["input_ids"].dims)) for w in encoder.model_warmup] == [(1, [8]), (2, [8])]
    assert not encoder.HasField("optimization")
    assert encoder.HasField("dynamic_batching")
    front = config_of(package / "triton/reviews/config.pbtxt")
    assert front.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU


def test_tensorrt_knows_every_shape_that_can_come(tmp_path):
    package = build_package(tmp_path / "package", max_length=96, max_batch_size=32, serving_device="gpu", tensorrt=True)
    encoder = config_of(package / "triton/reviews-encoder/config.pbtxt")
    (accelerator,) = encoder.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP16"
    shapes = {key: accelerator.parameters[f"trt_profile_{key}_shapes"] for key in ("min", "opt", "max")}
    assert shapes == {
        "min": "input_ids:1x1,attention_mask:1x1",
        "opt": "input_ids:8x64,attention_mask:8x64",
        "max": "input_ids:32x96,attention_mask:32x96",
    }


def test_all_problems_at_once(tmp_path):
    wrong = {"max_text_bytes": -1, "max_batch_size": 0, "max_queue_size": 0, "max_wait_ms": -1, "batch_rows": 0,
             "encoder_instances": 0, "encoder_threads": -1, "serving_device": "tpu"}  # fmt: skip
    with pytest.raises(InputError) as caught:
        build_package(tmp_path / "package", served_name="../up", max_length=0, **wrong)
    assert {p.where for p in caught.value.problems} == {"model_name", "max_length", *wrong}
    assert not (tmp_path / "package" / "triton").exists()


def test_tensorrt_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(InputError, match="serving_device=gpu"):
        build_package(tmp_path / "package", tensorrt=True)


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
