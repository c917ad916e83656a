from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_artifacts import words

from stillhouse.errors import ServingError
from stillhouse.evaluation.machine import available_cores, describe_machine
from stillhouse.evaluation.measure import _percentiles, measure
from stillhouse.progress import Step
from stillhouse.serving.runtime import PackageRuntime


def quick(packages: dict[str, Path], texts: list[str]) -> dict:
    return measure(packages, texts, threads=1, latency_samples=10, throughput_rows=9, seed=1, step=Step("evaluate"))


def test_answers_come_in_the_order_of_the_texts(tiny: dict[str, Path]) -> None:
    # Longest first, so that sorting by length turns them round; more than one batch of 32.
    texts = [" ".join(words("test", row % 2)[: 20 - row % 19]) for row in range(70)]
    package = tiny["teacher"] / "fp32"
    found = quick({"a": package, "b": tiny["student"] / "int8"}, texts)
    single = np.concatenate([PackageRuntime(package).predict([text]).probabilities for text in texts])
    np.testing.assert_allclose(found["a"].probabilities, single, atol=1e-6)
    assert found["a"].probabilities.argmax(axis=1).tolist() == [row % 2 for row in range(70)]
    assert not np.allclose(found["b"].probabilities, found["a"].probabilities)
    for measurement in found.values():
        assert 0 < measurement.latency_ms["p50"] <= measurement.latency_ms["p95"] <= measurement.latency_ms["p99"]
        assert measurement.throughput > 0
        assert 0 < measurement.model_memory_mb < measurement.peak_memory_mb


def test_memory_of_the_parent_is_not_counted(tiny: dict[str, Path]) -> None:
    # 400 MB in the process that starts the worker; `ru_maxrss` would hand them down.
    source = Path(__file__).resolve().parents[3] / "src"
    script = f"""
import json, numpy as np
from pathlib import Path
ballast = np.ones(50_000_000)
from stillhouse.evaluation.measure import measure
from stillhouse.progress import Step
found = measure({{"a": Path({str(tiny["teacher"] / "fp32")!r})}}, ["test0w1"], threads=1, latency_samples=10,
                throughput_rows=3, seed=1, step=Step("evaluate"))
print(json.dumps([ballast.nbytes / 1e6, found["a"].peak_memory_mb]))
"""
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    ballast, peak = json.loads(done.stdout)
    assert ballast == 400 and peak < 300


def test_percentiles_are_the_median_over_rounds() -> None:
    # One round of three fell into a slow minute.
    rounds = [[0.001] * 99 + [0.003], [0.002] * 99 + [0.004], [9.0] * 100]
    assert _percentiles(rounds)["p50"] == pytest.approx(2.0)


def test_a_package_that_cannot_be_loaded_is_named(tiny: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny["teacher"] / "fp32", broken)
    next(broken.rglob("model.onnx")).write_bytes(b"no model")
    with pytest.raises(ServingError, match=r"student int8 failed to load"):
        quick({"teacher fp32": tiny["teacher"] / "fp32", "student int8": broken}, ["test0w1"])


def test_a_worker_that_dies_is_reported_with_what_it_wrote(tiny: dict[str, Path], tmp_path: Path) -> None:
    deadly = tmp_path / "deadly"
    shutil.copytree(tiny["teacher"] / "fp32", deadly)
    front = next(deadly.rglob("model.py"))
    front.write_text("import os, sys\nprint('out of luck', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(ServingError, match="killed by signal 9") as caught:
        quick({"deadly": deadly}, ["test0w1"])
    assert "out of luck" in caught.value.log_tail


def test_cores_respect_the_quota_of_a_container(tmp_path: Path) -> None:
    everything = available_cores(tmp_path / "absent")
    assert everything == len(os.sched_getaffinity(0))
    limit = tmp_path / "cpu.max"
    limit.write_text("max 100000\n")
    assert available_cores(limit) == everything
    limit.write_text("50000 100000\n")
    assert available_cores(limit) == 1
    limit.write_text("6400000 100000\n")
    assert available_cores(limit) == everything
    assert describe_machine(1)["threads"] == 1
