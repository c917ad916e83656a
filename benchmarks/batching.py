"""How texts of different lengths are best batched: three ways to serve the same encoder, in one run.

    python benchmarks/batching.py [--seconds S] [--rounds N]

Triton batches only requests of equal shape, and tokenised texts are of many shapes.

    buckets   a tokenising model pads each request to 16, 32, 64 or 128 tokens; the encoder's dynamic batcher puts
              requests of the same bucket together; a third model names the labels (an ensemble)
    batch     one front model takes the dynamic batch of texts, tokenises it in one call, sorts it by length, and calls
              the encoder in sub-batches with little padding
    queue     what packages hold: the same, and the front model has its own queue, from which two threads take batches

The encoder has DistilBERT-base's shape, in INT8; requests hold one of SST-2's test sentences each. Prints texts a
second and p99 by concurrency, as ratios to `batch` in the same round.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import tritonclient.grpc as triton
from serving import MODEL, SHARED, build
from tritonclient.utils import InferenceServerException

from stillhouse.loadtest import run_load
from stillhouse.serving.processes import end_group
from stillhouse.serving.triton import find_triton, free_ports

LEVELS = (1, 4, 8, 16)

TOKENISE = """
import json
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length=128)
        self.tokenizer.no_padding()

    def execute(self, requests):
        texts = [
            [text.decode() for text in pb_utils.get_input_tensor_by_name(one, "TEXT").as_numpy().reshape(-1).tolist()]
            for one in requests
        ]
        encoded = iter(self.tokenizer.encode_batch_fast([text for part in texts for text in part]))
        responses = []
        for part in texts:
            rows = [next(encoded).ids for _ in part]
            width = next(size for size in (16, 32, 64, 128) if size >= max(map(len, rows)))
            ids = np.zeros((len(rows), width), dtype=np.int64)
            mask = np.zeros_like(ids)
            for index, row in enumerate(rows):
                ids[index, : len(row)] = row
                mask[index, : len(row)] = 1
            tensors = [pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
"""

NAME = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for one in requests:
            best = pb_utils.get_input_tensor_by_name(one, "probabilities").as_numpy().argmax(axis=1)
            names = np.array([[(b"negative", b"positive")[index]] for index in best], dtype=np.object_)
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("LABEL", names)]))
        return responses
"""

BATCH = """
import importlib.util
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        spec = importlib.util.spec_from_file_location("front", folder / "front.py")
        front = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(front)
        model = front.TritonPythonModel()
        model._encoder, model._version = args["model_name"] + "-encoder", int(args["model_version"])
        self.classifier = front.load(folder, model._encode)

    def execute(self, requests):
        texts = [pb_utils.get_input_tensor_by_name(one, "TEXT").as_numpy().reshape(-1).tolist() for one in requests]
        probabilities, labels = self.classifier([text for part in texts for text in part])
        responses, row = [], 0
        for part in texts:
            rows = slice(row, row + len(part))
            row = rows.stop
            names = np.array([[label.encode()] for label in labels[rows]], dtype=np.object_)
            outputs = [pb_utils.Tensor("PROBABILITIES", probabilities[rows]), pb_utils.Tensor("LABEL", names)]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""

TEXT = '{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }'
IDS = ", ".join(f'{{ name: "{name}" data_type: TYPE_INT64 dims: [ -1 ] }}' for name in ("input_ids", "attention_mask"))
PROBABILITIES = '{ name: "%s" data_type: TYPE_FP32 dims: [ 2 ] }'
LABEL = '{ name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] }'


def python_model(folder: Path, inputs: str, outputs: str, source: str) -> None:
    """A model of the Python backend that batches dynamically."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(source, encoding="utf-8")
    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}" backend: "python" max_batch_size: 64 input [ {inputs} ] output [ {outputs} ] '
        "dynamic_batching { }",
        encoding="utf-8",
    )


def buckets(repository: Path) -> None:
    """Replace the front model by an ensemble that pads to buckets, before an encoder that batches."""
    front = repository / MODEL
    encoder = repository / f"{MODEL}-encoder" / "config.pbtxt"
    encoder.write_text(encoder.read_text(encoding="utf-8") + "dynamic_batching { }\n", encoding="utf-8")
    python_model(repository / f"{MODEL}-tokens", TEXT, IDS, TOKENISE)
    shutil.move(front / "1" / "tokenizer.json", repository / f"{MODEL}-tokens" / "1")
    python_model(repository / f"{MODEL}-names", PROBABILITIES % "probabilities", LABEL, NAME)
    shutil.rmtree(front)
    (front / "1").mkdir(parents=True)
    (front / "config.pbtxt").write_text(
        f"""name: "{MODEL}" platform: "ensemble" max_batch_size: 64
input [ {TEXT} ] output [ {PROBABILITIES % "PROBABILITIES"}, {LABEL} ]
ensemble_scheduling {{ step [
  {{ model_name: "{MODEL}-tokens" model_version: -1 input_map {{ key: "TEXT" value: "TEXT" }}
     output_map {{ key: "input_ids" value: "ids" }} output_map {{ key: "attention_mask" value: "mask" }} }},
  {{ model_name: "{MODEL}-encoder" model_version: -1 input_map {{ key: "input_ids" value: "ids" }}
     input_map {{ key: "attention_mask" value: "mask" }}
     output_map {{ key: "probabilities" value: "PROBABILITIES" }} }},
  {{ model_name: "{MODEL}-names" model_version: -1 input_map {{ key: "probabilities" value: "PROBABILITIES" }}
     output_map {{ key: "LABEL" value: "LABEL" }} }}
] }}
""",
        encoding="utf-8",
    )


def batch(repository: Path) -> None:
    """Replace the front model by one that relies on Triton's dynamic batcher."""
    front = repository / MODEL
    (front / "1" / "model.py").rename(front / "1" / "front.py")
    (front / "1" / "model.py").write_text(BATCH, encoding="utf-8")
    config = front / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8") + "dynamic_batching { }\n", encoding="utf-8")


WAYS: dict[str, Callable[[Path], None]] = {"buckets": buckets, "batch": batch, "queue": lambda repository: None}


@contextmanager
def served(folder: Path, repository: Path) -> Iterator[str]:
    """All models of a repository on a server of their own; yields its address when the public one answers."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports()
    server = find_triton(folder)
    models = sorted(path.name for path in repository.iterdir())
    command = server.command(repository, ports, models=models, shared_memory=f"{folder.name}-", key="key")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=server.environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        with triton.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
            while True:
                with suppress(InferenceServerException):
                    if client.is_model_ready(MODEL):
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit((folder / "log").read_text(errors="replace")[-3000:])
                time.sleep(0.2)
        yield f"127.0.0.1:{ports.grpc}"
    finally:
        end_group(process.pid, patience=15.0)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with (SHARED / "sst2/test.tsv").open(encoding="utf-8") as file:
        texts = [row["sentence"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        package = build(Path(scratch))
        for way, change in WAYS.items():
            copy = Path(shutil.copytree(package, Path(scratch) / way))
            change(copy / "triton")
        for _ in range(given.rounds):
            for way in WAYS:
                with served(Path(scratch) / f"server-{way}", Path(scratch) / way / "triton") as url:
                    for level in LEVELS:
                        result = run_load(url, MODEL, texts, concurrency=level, seconds=given.seconds)
                        found.setdefault((way, level), []).append((result.texts_per_second, result.p99))
                        figures = f"{result.texts_per_second:6.1f} texts/s, p99 {result.p99:6.1f} ms"
                        print(f"{way:>8} {level:>3} callers: {figures} {result.errors or ''}", flush=True)
    for level in LEVELS:
        row = {}
        for way in WAYS:
            pairs = zip(found[way, level], found["batch", level], strict=True)
            ratios = [(a[0] / b[0], a[1] / b[1]) for a, b in pairs]
            row[way] = [round(statistics.median(values), 3) for values in zip(*ratios, strict=True)]
        print(f"{level:>3} callers, throughput and p99 by those of `batch`: {json.dumps(row)}")


if __name__ == "__main__":
    main()
