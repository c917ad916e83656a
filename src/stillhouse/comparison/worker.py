"""One model in a process of its own: `python -m stillhouse.comparison.worker MODEL --threads N`.

The parent writes one JSON request a line to standard input and reads JSON replies from standard output:

    {"do": "load", "seed"}                            -> {"ok": {"import_mb", "seconds", "labels": [name, …] or null}}
    {"do": "time", "batch", "length", "vocabulary", "calls", "warm"}   -> {"ok": {"seconds": [one per call]}}
    {"do": "train", with the same fields}             -> {"ok": {"seconds": [one per step]}}
    {"do": "predict", "texts": path, "output": path}  -> {"done": rows}…, {"ok": {}}
    {"do": "memory"}                                  -> {"ok": {"peak_mb"}}

or `{"error": message}`. It ends when standard input does, so it never outlives its parent.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.artifacts import ModelManifest
from stillhouse.comparison.config import TASK
from stillhouse.comparison.subjects import WHERE, Subject, parse_subject
from stillhouse.evaluation.processes import serve_requests
from stillhouse.evaluation.worker import peak_memory_mb
from stillhouse.models import checkpoints
from stillhouse.models.families import position_limit
from stillhouse.tasks import get_task

__all__ = ["FIRST_ID", "Worker"]

FIRST_ID = 5
"""Token ids are drawn from here upwards: below stand padding and the other special tokens of every family."""
_BATCH = 32
_MAX_TOKENS = 512
"""Tokens after which a text is cut where neither the artifact nor the tokenizer says less."""
_LEARNING_RATE = 1e-5


class Worker:
    """Answers requests about one model, as a classifier: what has no such head gets a fresh one."""

    def __init__(self, model: str, threads: int) -> None:
        self._text = model
        self._threads = threads
        self._subject: Subject | None = None
        self._model: Any = None

    def load(self, seed: int) -> dict[str, Any]:
        """Import the libraries, note what they alone take, then build or load the model."""
        import torch
        import transformers

        torch.set_num_threads(self._threads)
        task = get_task(TASK)
        self._subject = subject = parse_subject(self._text)
        import_mb = peak_memory_mb()
        begin = time.perf_counter()
        transformers.set_seed(seed)
        if subject.checkpoint is not None:
            self._model = checkpoints.load_model(subject.checkpoint, WHERE, task.auto_class, {})
        else:
            self._model = checkpoints.build_model(subject.config, task.auto_class, WHERE)
        self._model.eval()
        seconds = time.perf_counter() - begin
        trained = subject.checkpoint is not None and any(
            name.endswith(task.architecture_suffix) for name in subject.config.architectures or ()
        )
        names = self._model.config.id2label
        labels = [str(names[index]) for index in range(self._model.config.num_labels)] if trained else None
        return {"import_mb": import_mb, "seconds": seconds, "labels": labels}

    def time(self, batch: int, length: int, vocabulary: int, calls: int, warm: int) -> dict[str, list[float]]:
        """Seconds of each forward pass of [batch, length] token ids, after `warm` passes that are not counted."""
        import torch

        ids = self._ids(batch, length, vocabulary)
        mask = torch.ones_like(ids)
        with torch.inference_mode(), _no_collection():
            return {"seconds": _timed(lambda: self._model(input_ids=ids, attention_mask=mask), calls, warm)}

    def train(self, batch: int, length: int, vocabulary: int, calls: int, warm: int) -> dict[str, list[float]]:
        """Seconds of each training step: forward, backward, and AdamW's update."""
        import torch

        ids = self._ids(batch, length, vocabulary)
        mask = torch.ones_like(ids)
        labels = torch.arange(batch) % self._model.config.num_labels
        task = get_task(TASK)
        # Made anew for each turn: while another model is measured, gradients and moments are not to take memory.
        optimizer = torch.optim.AdamW(self._model.parameters(), lr=_LEARNING_RATE, fused=True)

        def step() -> None:
            loss = task.loss(self._model(input_ids=ids, attention_mask=mask).logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        self._model.train()
        try:
            with _no_collection():
                return {"seconds": _timed(step, calls, warm)}
        finally:
            self._model.eval()

    def predict(self, texts: str, output: str, say: Callable[[dict[str, Any]], None]) -> None:
        """Predict a file of one JSON string a line, in order, and save the probabilities [rows, labels] as `.npy`."""
        import numpy as np
        import torch

        assert self._subject is not None and self._subject.checkpoint is not None
        task = get_task(TASK)
        tokenizer = checkpoints.load_tokenizer(self._subject.checkpoint, WHERE)
        longest = min(
            tokenizer.model_max_length, position_limit(self._subject.config) or _MAX_TOKENS, self._longest_known()
        )
        with open(texts, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        found = []
        with torch.inference_mode():
            for start in range(0, len(rows), _BATCH):
                encoded = tokenizer(
                    rows[start : start + _BATCH], padding=True, truncation=True, max_length=longest,
                    return_tensors="pt", return_token_type_ids=False,
                )  # fmt: skip
                found.append(task.probabilities(self._model(**encoded).logits.float()).numpy())
                say({"done": min(start + _BATCH, len(rows))})
        np.save(output, np.concatenate(found))

    def _longest_known(self) -> int:
        """Tokens of a text that the checkpoint was trained on, where it is an artifact that says so."""
        assert self._subject is not None and self._subject.checkpoint is not None
        folder = Path(self._subject.checkpoint.location)
        if (folder / ModelManifest.filename()).is_file():
            return min(ModelManifest.load(folder).max_length, _MAX_TOKENS)
        return _MAX_TOKENS

    def answer(self, request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Carry out one request."""
        what = request.pop("do")
        if what == "predict":
            self.predict(**request, say=say)
            return {}
        if what == "memory":
            return {"peak_mb": peak_memory_mb()}
        if what == "load":
            return self.load(**request)
        if what == "time":
            return self.time(**request)
        if what == "train":
            return self.train(**request)
        raise ValueError(f"unknown request {what!r}")

    def _ids(self, batch: int, length: int, vocabulary: int) -> Any:
        """The same token ids [batch, length] for every model."""
        import torch

        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(min(FIRST_ID, vocabulary - 1), vocabulary, (batch, length), generator=generator)
        config = self._model.config
        if config.is_encoder_decoder and config.eos_token_id is not None:
            ids[:, -1] = config.eos_token_id  # BART classifies by what stands there
        return ids


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection while the clock runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _timed(call: Callable[[], Any], calls: int, warm: int) -> list[float]:
    for _ in range(warm):
        call()
    seconds = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one model; driven by stillhouse.comparison.measuring.")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    serve_requests(Worker(arguments.model, arguments.threads).answer)


if __name__ == "__main__":
    main()
