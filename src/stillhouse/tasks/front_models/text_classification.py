"""The served front model of single-sentence classification: text in, probabilities and a label out.

This file is copied as it stands into every package, as `model.py` of the public Triton model, beside `settings.json`,
`tokenizer.json`, `batch_queue.py`, `encoder_session.py`, `queue_metrics.py` and `request_log.py`. So it imports the
standard library, numpy and tokenizers only, and Triton's own module and the files beside it only where Triton runs it.

    TEXT            BYTES [n, 1]   UTF-8, at most `max_text_bytes` bytes each
    PROBABILITIES   FP32  [n, c]   one column per label, rows sum to 1
    LABEL           BYTES [n, 1]   name of the most probable label

Shapes in this file: n texts, s tokens, c labels.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

__all__ = ["CALL_TOKENS", "TextClassifier", "TextError", "TritonPythonModel", "load"]

Encode = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""(token ids [n, s], attention mask [n, s]) to probabilities [n, c]."""

# One more call of the encoder costs as much time as so many tokens of padding do: 20 in process with DistilBERT-base in
# INT8 on two cores, and the way between the two models (benchmarks/batching.py). Twice as many or half as many cost 2%.
CALL_TOKENS = 32


class TextError(ValueError):
    """A text that the model refuses. The message is meant for the caller."""


class _EncoderError(RuntimeError):
    """The encoder gave no answer. The message is meant for the caller."""


class TextClassifier:
    """Tokenises texts, runs the encoder on them in well-packed sub-batches, and names the labels.

    Args:
        settings: `label_names`, `max_length` (tokens), `max_text_bytes`, `max_batch_size` (rows of one encoder call)
            and `pad_id`.
        tokenizer: its truncation and padding are set here.
        encode: the encoder.
    """

    def __init__(self, settings: dict[str, Any], tokenizer: Tokenizer, encode: Encode) -> None:
        self.label_names: list[str] = list(settings["label_names"])
        self.max_text_bytes = int(settings["max_text_bytes"])
        self._max_batch_size = int(settings["max_batch_size"])
        self._pad_id = int(settings["pad_id"])
        self._encode = encode
        self.tokenizer = tokenizer
        tokenizer.enable_truncation(max_length=int(settings["max_length"]))
        tokenizer.no_padding()

    def decode(self, text: bytes) -> str:
        """The text as a string.

        Raises:
            TextError: it is longer than `max_text_bytes`, or not UTF-8.
        """
        # The length comes first: it bounds the work that any one text can cause.
        if len(text) > self.max_text_bytes:
            raise TextError(f"the text has {len(text)} bytes; the limit of this model is {self.max_text_bytes}")
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TextError(f"the text is not valid UTF-8 (byte {error.start}: {error.reason})") from None

    def __call__(self, texts: Sequence[bytes]) -> tuple[NDArray[np.float32], list[str]]:
        """Classify texts.

        Returns:
            Probabilities [n, c], and n label names, in the order of the texts.

        Raises:
            TextError: for the first text that is refused; nothing was encoded then.
        """
        return self.classify([self.decode(text) for text in texts])

    def classify(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[str]]:
        """As `__call__`, for texts that `decode` returned."""
        tokens = self.token_ids(texts) if texts else []
        if len(tokens) == 1 and tokens[0]:  # nothing to be ordered or padded
            ids = np.array(tokens, dtype=np.int64)
            probabilities = self._encode(ids, np.ones_like(ids))
        else:
            probabilities = self._encode_in_order(tokens)
        return probabilities, [self.label_names[index] for index in probabilities.argmax(axis=1)]

    def _encode_in_order(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Probabilities [n, c] of token ids of any lengths, by as many calls of the encoder as are cheapest."""
        probabilities = np.zeros((len(tokens), len(self.label_names)), dtype=np.float32)
        for rows in self._sub_batches([len(ids) for ids in tokens]):
            width = max(1, max(len(tokens[row]) for row in rows))
            ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
            mask = np.zeros((len(rows), width), dtype=np.int64)
            for index, row in enumerate(rows):
                ids[index, : len(tokens[row])] = tokens[row]
                mask[index, : len(tokens[row])] = 1
            probabilities[rows] = self._encode(ids, mask)
        return probabilities

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text."""
        if len(texts) == 1:
            return [self.tokenizer.encode(texts[0]).ids]  # done before the threads of a batch would be awake
        # One call for all: the Rust side works on the texts in parallel.
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def _sub_batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers of each encoder call, rows of like length together: the cheapest way to cut them, sorted."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        best, cut = [0], [0]  # for the first k rows: the least cost, in tokens, and where the last call begins then
        for end in range(1, len(order) + 1):
            width = lengths[order[end - 1]]
            begins = range(max(0, end - self._max_batch_size), end)
            cost, begin = min((best[begin] + CALL_TOKENS + (end - begin) * width, begin) for begin in begins)
            best.append(cost)
            cut.append(begin)
        end = len(order)
        while end:
            yield order[cut[end] : end]
            end = cut[end]


def load(folder: Path, encode: Encode) -> TextClassifier:
    """The classifier of a model folder, which holds `settings.json` and `tokenizer.json`."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return TextClassifier(settings, Tokenizer.from_file(str(folder / "tokenizer.json")), encode)


class _Waiting(NamedTuple):
    """A request that waits for its turn."""

    sender: Any
    """Triton's, which takes the one response."""
    texts: list[str]
    request_id: str


class TritonPythonModel:
    """What Triton's Python backend runs.

    Triton hands over each request as it comes. It is answered from a thread that takes waiting requests in batches; or,
    if it is a lone caller's, by the thread that took it in: a hand-over less, which is some 0.2 ms.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings and the tokenizer from the folder of this version."""
        folder = Path(args["model_repository"]) / args["model_version"]
        sys.path.insert(0, str(folder))  # where this file and those that it comes with stand side by side
        batch_queue = importlib.import_module("batch_queue")
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self._version = int(args["model_version"])
        self._encoder = settings["encoder"]
        encode = self._open_encoder(args, settings) if settings["encoder_in_front"] else self._ask_encoder
        self._classifier = load(folder, encode)
        self._classifier.tokenizer.encode("warm")
        self._log = self._open_log(args)
        self._full = batch_queue.QueueFull
        self._queue = batch_queue.BatchQueue(
            max_items=settings["max_queue_size"],
            max_wait=settings["max_wait_ms"] / 1000,
            batch_rows=settings["batch_rows"],
        )
        self._probe_id = importlib.import_module("request_log").RequestLog.PROBE_ID
        self._outcomes = importlib.import_module("queue_metrics").Outcomes()
        self._metrics = self._open_metrics(args)
        # One more than there are encoders: the next batch is tokenised while this one is encoded.
        self._workers = [
            threading.Thread(target=self._work, daemon=True) for _ in range(settings["encoder_instances"] + 1)
        ]
        for worker in self._workers:
            worker.start()

    def finalize(self) -> None:
        """Answer what is still waiting, and write what the request log still holds."""
        self._queue.close()
        for worker in self._workers:
            worker.join()
        if self._metrics is not None:
            self._metrics.close()
        if self._log is not None:
            self._log.close()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Queue the requests, or refuse them at once; a lone caller's text is answered right here.

        Returns:
            A response for each request, or None for one that is answered through its response sender.
        """
        responses = [self._take_in(request) for request in requests]
        return responses if any(response is not None for response in responses) else None

    def _take_in(self, request: Any) -> Any:
        """The response to a request, or None if it was queued or refused."""
        import triton_python_backend_utils as pb_utils

        sender = request.get_response_sender()
        try:
            tensor = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            texts = [self._classifier.decode(text) for text in tensor.reshape(-1).tolist()]
            waiting = _Waiting(sender, texts, request.request_id())
            # While a request is answered here, what comes waits in Triton's own queue, which refuses nobody: so it must
            # be one text, and the queue tells when it is time to see whether others come.
            if len(texts) != 1 or not self._queue.begin(1):
                # A probe asks whether the model lives, which a refusal does not tell. It has one text: nobody else is
                # to go first with a list.
                urgent = waiting.request_id == self._probe_id and len(texts) == 1
                self._queue.add(waiting, len(texts), urgent=urgent)
                return None
        except TextError as error:
            self._outcomes.add(invalid=1)
            _send_error(sender, str(error), pb_utils.TritonError.INVALID_ARG)
            return None
        except self._full as error:
            _send_error(sender, f"the model is overloaded: {error}", pb_utils.TritonError.UNAVAILABLE)
            return None
        except Exception as error:  # a tensor that cannot be read must not fail its neighbours
            self._outcomes.add(invalid=1)
            _send_error(sender, f"TEXT cannot be read: {error}", pb_utils.TritonError.INVALID_ARG)
            return None
        try:
            ((probabilities, labels),) = self._classify([waiting])
        except _EncoderError as error:
            _send_error(sender, str(error), pb_utils.TritonError.INTERNAL)
            return None
        self._record(waiting, probabilities, labels)
        return _response(probabilities, labels)

    def _work(self) -> None:
        """Serve batch after batch, until the queue is closed and empty."""
        import triton_python_backend_utils as pb_utils

        while True:
            batch, late = self._queue.take()
            if not batch and not late:
                return
            try:
                for waiting in late:
                    _send_error(waiting.sender, "the request waited too long", pb_utils.TritonError.UNAVAILABLE)
                self._serve(batch)
            except Exception as error:  # without this thread nothing would be answered any more
                self._outcomes.add(failed=len(batch))
                pb_utils.Logger.log_error(f"a batch of {len(batch)} requests failed: {error!r}")

    def _serve(self, batch: Sequence[_Waiting]) -> None:
        """Classify the texts of all requests together, and answer each request on its own."""
        import triton_python_backend_utils as pb_utils

        try:
            answers = self._classify(batch)
        except _EncoderError as error:
            for waiting in batch:
                _send_error(waiting.sender, str(error), pb_utils.TritonError.INTERNAL)
            return
        for waiting, (probabilities, labels) in zip(batch, answers, strict=True):
            _send(waiting.sender, _response(probabilities, labels))
            self._record(waiting, probabilities, labels)

    def _classify(self, batch: Sequence[_Waiting]) -> list[tuple[NDArray[np.float32], list[str]]]:
        """Probabilities and labels of each request of a batch, which is done then.

        Raises:
            _EncoderError: there are none.
        """
        texts = [text for waiting in batch for text in waiting.texts]
        begin = time.monotonic()
        failed = True
        try:
            probabilities, labels = self._classifier.classify(texts)
            failed = False
        except Exception as error:
            raise _EncoderError(f"the encoder failed: {error}") from error
        finally:
            probes = sum(waiting.request_id == self._probe_id for waiting in batch)
            self._outcomes.add(probes=probes, failed=len(batch) if failed else 0)
            # Before the answers: who asks again at once must not wait, or be refused, because of what is answered.
            self._queue.done(len(batch), len(texts), begin)
        ends = list(accumulate(len(waiting.texts) for waiting in batch))
        return [(probabilities[begin:end], labels[begin:end]) for begin, end in pairwise([0, *ends])]

    def _record(self, waiting: _Waiting, probabilities: NDArray[np.float32], labels: list[str]) -> None:
        if self._log is not None and waiting.request_id != self._probe_id:
            self._log.record(waiting.texts, labels, probabilities)

    def _open_metrics(self, args: dict[str, str]) -> Any:
        """The queue's metrics; None where the server has metrics switched off."""
        import triton_python_backend_utils as pb_utils

        module = importlib.import_module("queue_metrics")
        try:
            return module.QueueMetrics(
                self._queue.totals, self._outcomes, model=args["model_name"], version=args["model_version"]
            )
        except pb_utils.TritonModelException as error:
            pb_utils.Logger.log_info(f"the queue's metrics are not reported: {error}")
            return None

    def _open_log(self, args: dict[str, str]) -> Any:
        """The request log; None where the server's environment asks for none.

        Raises:
            ValueError: it asks for one in a way that cannot be understood.
        """
        if not os.environ.get("STILLHOUSE_REQUEST_LOG"):
            return None
        module = importlib.import_module("request_log")
        return module.RequestLog(
            module.Settings.from_environment(os.environ),
            model=args["model_name"],
            release=args["model_version"],
            label_names=self._classifier.label_names,
            count_tokens=self._count_tokens,
        )

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._classifier.token_ids(texts)]

    def _open_encoder(self, args: dict[str, str], settings: dict[str, Any]) -> Encode:
        """The encoder in this process.

        Raises:
            RuntimeError: this server's Python cannot run it.
        """
        try:
            module = importlib.import_module("encoder_session")
        except ImportError as error:
            raise RuntimeError(
                "the package was made with encoder_in_front, which needs onnxruntime in the server's Python. "
                f"Add it there, or package without that option. ({error})"
            ) from None
        encode: Encode = module.EncoderSession(
            Path(args["model_repository"]).parent / self._encoder / args["model_version"] / "model.onnx",
            threads=settings["encoder_threads"],
            max_length=settings["max_length"],
        )
        return encode

    def _ask_encoder(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run the encoder model of this server."""
        import triton_python_backend_utils as pb_utils

        response = pb_utils.InferenceRequest(
            model_name=self._encoder,
            # Its own version: while a release is being replaced, the encoders of both are there.
            model_version=self._version,
            requested_output_names=["probabilities"],
            inputs=[pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise RuntimeError(response.error().message())
        # Copied: the tensor's memory is shared with the server, and goes with the response.
        return np.array(pb_utils.get_output_tensor_by_name(response, "probabilities").as_numpy(), dtype=np.float32)


def _response(probabilities: NDArray[np.float32], labels: list[str]) -> Any:
    import triton_python_backend_utils as pb_utils

    names = np.array([[label.encode()] for label in labels], dtype=np.object_)
    outputs = [pb_utils.Tensor("PROBABILITIES", probabilities), pb_utils.Tensor("LABEL", names)]
    return pb_utils.InferenceResponse(output_tensors=outputs)


def _send(sender: Any, response: Any) -> None:
    import triton_python_backend_utils as pb_utils

    try:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:  # of a caller who is gone; the others are still to be answered
        pb_utils.Logger.log_warn(f"an answer could not be sent: {error}")


def _send_error(sender: Any, message: str, code: int) -> None:
    import triton_python_backend_utils as pb_utils

    _send(sender, pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)))
