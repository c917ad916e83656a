"""What benchmarks/serving.py compares the server with, on the same checkpoint and texts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, repeat
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from tokenizers import Tokenizer
from tritonclient.grpc import service_pb2

from stillhouse.serving.triton import free_ports

MODEL = "sst2"


class InProcess:
    """ONNX Runtime and the Rust tokenizer with nothing around them, on all cores.

    `ways` are the numbers of batches that may be under way: one, on all cores; or one on each core.
    """

    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        cores = len(os.sched_getaffinity(0))
        self.ways = sorted({1, cores})
        self._sessions = {}
        for way in self.ways:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = cores // way
            options.inter_op_num_threads = 1
            self._sessions[way] = onnxruntime.InferenceSession(
                str(folder / "int8.onnx"), options, providers=["CPUExecutionProvider"]
            )
        self._tokenizer = Tokenizer.from_file(str(folder / "checkpoint" / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(128)
        self._texts = list(texts)

    def _encode(self, tokens: Sequence[Sequence[int]], way: int = 1) -> None:
        width = max(map(len, tokens))
        ids = np.zeros((len(tokens), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, values in enumerate(tokens):
            ids[row, : len(values)] = values
            mask[row, : len(values)] = 1
        self._sessions[way].run(None, {"input_ids": ids, "attention_mask": mask})

    def sorted_batches(self, size: int, way: int) -> float:
        """Texts a second over all texts, in batches of `size` sorted by length (nearly no padding), `way` at a time."""
        begin = time.perf_counter()
        tokens = sorted((encoding.ids for encoding in self._tokenizer.encode_batch_fast(self._texts)), key=len)
        batches = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        with ThreadPoolExecutor(way) as pool:
            for _ in pool.map(self._encode, batches, repeat(way)):
                pass
        return len(self._texts) / (time.perf_counter() - begin)

    def one(self, text: str) -> None:
        """Answer one text."""
        self._encode([self._tokenizer.encode(text).ids])

    def single(self, seconds: float) -> float:
        """Median milliseconds of one text."""
        took = []
        end = time.perf_counter() + seconds
        for text in cycle(self._texts):
            begin = time.perf_counter()
            if begin > end:
                return 1000 * float(np.median(took))
            self.one(text)
            took.append(time.perf_counter() - begin)
        raise AssertionError


class TransformersPipeline:
    """`transformers.pipeline` in PyTorch, as most begin."""

    def __init__(self, checkpoint: Path, texts: Sequence[str]) -> None:
        from transformers import pipeline

        self._classify = pipeline("text-classification", model=str(checkpoint), device="cpu")
        self._texts = list(texts)

    def run(self, batch_size: int) -> float:
        """Texts a second over a third of the texts, in batches as they come."""
        texts = self._texts[: len(self._texts) // 3]
        begin = time.perf_counter()
        self._classify(texts, batch_size=batch_size)
        return len(texts) / (time.perf_counter() - begin)


_ECHO = """
from concurrent.futures import ThreadPoolExecutor
import grpc
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server = grpc.server(ThreadPoolExecutor(1))
server.add_generic_rpc_handlers((Echo(),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


@contextmanager
def echo() -> Iterator[str]:
    """The address of a process that gives each request back: what gRPC takes by itself, with Python at both ends."""
    process = subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


# Optimum 1.27, which mlserver-huggingface needs, takes private names from PyTorch that newer ones lack. They serve to
# export models, which is not done here.
_START_MLSERVER = """
import sys
from unittest.mock import MagicMock
import torch.onnx.symbolic_opset14 as opset
opset.__getattr__ = lambda name: MagicMock()
from mlserver.cli import main
sys.argv = ["mlserver", "start", "."]
main()
"""


@contextmanager
def mlserver(python: str, folder: Path) -> Iterator[Callable[..., float]]:
    """MLServer's Hugging Face runtime with adaptive batching; yields a load on it that returns texts a second.

    Args:
        python: of an environment with mlserver and mlserver-huggingface.
        folder: holds the checkpoint.
    """
    ports = free_ports()
    home = folder / "mlserver"
    (home / MODEL).mkdir(parents=True, exist_ok=True)
    settings = {"host": "127.0.0.1", "http_port": ports.http, "grpc_port": ports.grpc, "metrics_port": ports.metrics,
                "parallel_workers": 0, "debug": False}  # fmt: skip
    (home / "settings.json").write_text(json.dumps(settings))
    checkpoint = str(folder / "checkpoint")
    model = {"name": MODEL, "implementation": "mlserver_huggingface.HuggingFaceRuntime", "max_batch_size": 32,
             "max_batch_time": 0.01, "parameters": {"extra": {"task": "text-classification",
             "pretrained_model": checkpoint, "pretrained_tokenizer": checkpoint}}}  # fmt: skip
    (home / MODEL / "model-settings.json").write_text(json.dumps(model))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([python, "-c", _START_MLSERVER], cwd=home, env=environment, stdout=log, stderr=log)
    try:
        _wait(f"127.0.0.1:{ports.grpc}", process, home / "log")

        def ask(texts: Sequence[str], *, concurrency: int, seconds: float) -> float:
            return asyncio.run(_load(f"127.0.0.1:{ports.grpc}", texts, concurrency, seconds))

        yield ask
    finally:
        process.terminate()
        process.wait(timeout=60)


def _request(text: str) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="array_inputs", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(text.encode())
    tensor.parameters["content_type"].string_param = "str"
    return bytes(request.SerializeToString())


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    with grpc.insecure_channel(url) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        while process.poll() is None and time.monotonic() < deadline:
            try:
                infer(_request("warm"), timeout=60)
                return
            except grpc.RpcError:
                time.sleep(0.5)
    sys.exit(f"MLServer did not come up; its log ends with:\n{log.read_text(errors='replace')[-2000:]}")


async def _load(url: str, texts: Sequence[str], concurrency: int, seconds: float) -> float:
    """A closed loop, as `stillhouse.loadtest.run_load` has, with MLServer's own inputs."""
    requests = cycle([_request(text) for text in texts])
    answered = 0
    async with grpc.aio.insecure_channel(url) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        begin = time.perf_counter() + 1.0  # warm by then

        async def caller() -> None:
            nonlocal answered
            while (now := time.perf_counter()) < begin + seconds:
                await infer(next(requests), timeout=60)
                answered += now >= begin and time.perf_counter() < begin + seconds

        await asyncio.gather(*(caller() for _ in range(concurrency)))
    return answered / seconds
