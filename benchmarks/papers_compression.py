"""Part `compression` of `papers.py`: INT8 and pruning, how much faster and at what cost in accuracy."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from papers_sst2 import ROLES, dataset, distilled, prepared_models
from papers_study import Study, accuracy_on_test, paired_turns, ratio

from stillhouse.artifacts import ModelManifest, PackagesManifest
from stillhouse.comparison.subjects import parse_subject
from stillhouse.evaluation.machine import available_cores

REVISION = 3
"""Of what `stillhouse.export` writes: the cache goes by settings, not by code."""


def compression(study: Study) -> None:
    """7. INT8 and pruning: how much faster, and what it costs in accuracy."""
    assert study.sibling is not None
    _int8_speed(study)
    _int8_accuracy(study)
    _pruned(study)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    # Threads that wait must not spin: it is the other session's turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _timed_sessions(study: Study, paths: dict[str, Path], length: int) -> dict[str, list[float]]:
    ids = np.random.default_rng(0).integers(1000, 5000, (1, length))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    sessions = {name: _session(path) for name, path in paths.items()}
    calls = {name: lambda session=session: session.run(None, feed) for name, session in sessions.items()}
    return paired_turns(calls, rounds=study.settings["rounds"])


def _int8_speed(study: Study) -> None:
    """Random weights in the papers' shapes, exported, quantised, and timed in one process."""
    from transformers import set_seed

    from stillhouse.export.onnx import export_onnx, quantise_int8
    from stillhouse.export.static_int8 import quantise_int8_static
    from stillhouse.models import checkpoints
    from stillhouse.tasks import get_task

    task = get_task("classification")
    length = study.settings["length"]
    draw = np.random.default_rng(1).integers(1000, 5000, (4, 8, length))
    batches = [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in draw]
    rows, found = [], {}
    for name, least in (("distilbert-base", 2.5), ("albert-base", 2.8)):

        def build(content: Path, name: str = name) -> None:
            set_seed(0)
            content.mkdir()
            model = checkpoints.build_model(parse_subject(name).config, task.auto_class).eval()
            export_onnx(model, task, content / "fp32.onnx")
            quantise_int8(content / "fp32.onnx", content / "int8.onnx")
            quantise_int8_static(content / "fp32.onnx", content / "int8-static.onnx", batches)

        key = {"name": name, "length": length, "revision": REVISION}
        folder = study.artifact(f"onnx-{name}", key, build) / "content"
        paths = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "int8", "int8-static")}
        times = _timed_sessions(study, paths, length)
        speedup, static = ratio(times, "fp32", "int8"), ratio(times, "fp32", "int8-static")
        sizes = {precision: paths[precision].stat().st_size / 1e6 for precision in ("fp32", "int8")}
        milliseconds = [f"{1000 * statistics.median(times[precision]):.1f} ms" for precision in paths]
        rows.append([name, milliseconds[0], milliseconds[1], f"{speedup:.2f}×", milliseconds[2], f"{static:.2f}×",
                     *(f"{size:.1f} MB" for size in sizes.values())])  # fmt: skip
        found[name] = {"speedup": speedup, "static": static, "megabytes": sizes}
        study.claim(f"INT8 of the {name} shape is so many times as fast as its FP32 ONNX", speedup, low=least)
    titles = ["Shape", "FP32", "INT8", "Faster", "Static INT8", "Faster", "FP32 on disk", "INT8 on disk"]
    study.table(titles, rows)
    study.figures["int8_speed"] = found
    kinds = {"INT8": "speedup", "static INT8": "static"}
    series = {title: [entry[kind] for entry in found.values()] for title, kind in kinds.items()}
    study.bars("compression", "Times as fast as FP32, ONNX Runtime", list(found), series, "×")


def _int8_accuracy(study: Study) -> None:
    """SST-2 test accuracy of the trained students in each precision, as packaged."""
    from stillhouse.data.dataset import read_split
    from stillhouse.export.config import PackageConfig
    from stillhouse.export.package import package_model
    from stillhouse.serving.runtime import PackageRuntime

    data = dataset(study.sibling)
    test = read_split(data, "test")
    models = prepared_models(study.sibling)
    precisions = study.settings["precisions"]
    rows = []
    for role in ("student", "albert"):
        model = models[role]

        def package(content: Path, model: Path = model) -> None:
            config = PackageConfig(served_name="sst2", precisions=",".join(precisions))
            package_model(config, model_dir=model, dataset_dir=data, output_dir=content)

        key = {"model": ModelManifest.digest(model), "precisions": precisions, "revision": REVISION}
        folder = study.artifact(f"packages-{role}", key, package) / "content"
        accuracies = {}
        for precision in PackagesManifest.load(folder).precisions:
            runtime = PackageRuntime(folder / precision)
            parts = [runtime.predict(test["text"][start : start + 32]).probabilities
                     for start in range(0, len(test["text"]), 32)]  # fmt: skip
            accuracies[precision] = float((np.concatenate(parts).argmax(axis=1) == np.array(test["label"])).mean())
        rows.append([ROLES[role], *(f"{accuracies[p]:.4f}" if p in accuracies else "refused" for p in precisions)])
        study.figures[f"accuracy_{role}"] = accuracies
        for precision in precisions[1:]:
            if precision in accuracies:
                lost = 100 * (accuracies["fp32"] - accuracies[precision])
                study.claim(f"points of SST-2 accuracy that {precision} costs the {role}", lost, high=0.5)
    study.table(["Model", *(p.upper() for p in precisions)], rows)


def _pruned(study: Study) -> None:
    """A student with heads and neurons cut out, against the dense one that it was made from."""
    from stillhouse.export.onnx import export_onnx
    from stillhouse.models import checkpoints
    from stillhouse.tasks import get_task

    data = dataset(study.sibling)
    models = prepared_models(study.sibling)
    task = get_task("classification")
    folders = {"dense": models["student"]}
    shares = study.settings["prune"]
    folders["pruned"] = distilled(study.sibling, models["teacher"], models["wiki"], prune=shares)
    paths, accuracy, sizes = {}, {}, {}
    for name, model_dir in folders.items():

        def build(content: Path, model_dir: Path = model_dir) -> None:
            content.mkdir()
            manifest = ModelManifest.load(model_dir)
            reference = checkpoints.reference_for(model_dir)
            head = task.head_config(manifest.label_names)
            model = checkpoints.load_model(reference, "model", task.auto_class, head)
            export_onnx(model.eval(), task, content / "fp32.onnx")

        key = {"model": ModelManifest.digest(model_dir), "revision": REVISION}
        paths[name] = study.artifact(f"onnx-{name}", key, build) / "content" / "fp32.onnx"
        accuracy[name] = accuracy_on_test(model_dir, data)
        sizes[name] = ModelManifest.load(model_dir).parameters
    times = _timed_sessions(study, paths, study.settings["length"])
    speedup = ratio(times, "dense", "pruned")
    study.table(
        ["Student", "Parameters", "SST-2", "FP32 ONNX", "Faster"],
        [[name, f"{sizes[name] / 1e6:.1f}M", f"{accuracy[name]:.4f}", f"{1000 * statistics.median(times[name]):.1f} ms",
          f"{ratio(times, 'dense', name):.2f}×"] for name in folders],
    )  # fmt: skip
    study.figures["pruned"] = {"speedup": speedup, "accuracy": accuracy, "parameters": sizes}
    study.claim("the pruned student is so many times as fast as the dense one", speedup, low=1.5)
    study.claim("points of SST-2 accuracy that pruning costs", 100 * (accuracy["dense"] - accuracy["pruned"]), high=1.5)
    study.notes.append(f"Pruned: {shares['heads']:.0%} of the heads and {shares['ffn']:.0%} of the FFN's neurons.")
