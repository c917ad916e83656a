"""Both clients against a small server of their protocol; tests/serving asks Triton itself."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
import time
from itertools import chain

import grpc
import numpy as np
import pytest
from served_model import LABELS, ServedTexts, label_of

from stillhouse.client import (
    AsyncClient,
    Classification,
    Client,
    DeadlineExceeded,
    InputError,
    Overloaded,
    ServerUnavailable,
    ServingError,
    predict_texts,
)
from stillhouse.serving.triton import free_ports

TEXTS = ["x" * (index % 7) for index in range(30)]


def test_a_long_list_is_split_and_answered_in_order(serve, predict):
    model = ServedTexts(max_batch_size=4)
    answers = predict(serve(model), TEXTS)
    assert [answer.label for answer in answers] == [label_of(text) for text in TEXTS]
    assert sorted(len(texts) for texts in model.requests) == [2, *[4] * 7]
    together = sorted(sorted(map(len, texts)) for texts in model.requests)
    assert list(chain.from_iterable(together)) == sorted(map(len, TEXTS)), "texts of like length go together"
    first = answers[0]
    assert first.label == "bad"
    assert first.probability == first.probabilities["bad"] == pytest.approx(0.8)
    assert list(first.probabilities) == list(LABELS)
    assert first.release == "7"


def test_a_label_s_probability_goes_by_its_name(serve, predict):
    (answer,) = predict(serve(ServedTexts()), ["xx"])
    assert answer.label == "good"
    assert answer.probability == pytest.approx(0.8)
    assert answer.probabilities == pytest.approx({"bad": 0.1, "fair": 0.1, "good": 0.8})


@pytest.mark.parametrize(("batch_size", "largest"), [(3, 3), (100, 4), (None, 4)])
def test_batches_are_the_smaller_of_what_is_wanted_and_what_is_taken(serve, predict, batch_size, largest):
    model = ServedTexts(max_batch_size=4)
    predict(serve(model), TEXTS, batch_size=batch_size)
    assert max(len(texts) for texts in model.requests) == largest


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_requests_as_allowed_are_under_way(serve, predict, concurrency):
    model = ServedTexts()
    model.delay = 0.05
    predict(serve(model), TEXTS, concurrency=concurrency)
    assert model.busiest == concurrency


def test_no_text_needs_no_server(predict):
    assert predict("127.0.0.1:1", []) == []


def test_one_text(serve):
    url = serve(ServedTexts())

    async def ask() -> Classification:
        async with AsyncClient(url, "reviews") as client:
            return await client.predict_one("x")

    with Client(url, "reviews") as client:
        assert client.predict_one("x") == asyncio.run(ask())


def test_every_text_that_is_too_long_is_named(serve, predict):
    texts = ["fine"] * 20
    texts[9] = texts[15] = "ä" * 51
    with pytest.raises(InputError) as caught:
        predict(serve(ServedTexts()), texts)
    assert [problem.where for problem in caught.value.problems] == ["texts[9]", "texts[15]"]
    assert "has 102 bytes; the limit of 'reviews' is 100" in caught.value.problems[0].what


def test_where_the_reason_is_the_server_s_own_it_is_told(serve, predict):
    with pytest.raises(InputError) as caught:
        predict(serve(ServedTexts()), ["fine"] * 9 + ["odd"])
    (problem,) = caught.value.problems
    assert problem.where == "one of 2 texts"
    assert "b'odd' will not do" in problem.what


def test_what_is_no_text_is_told_before_anything_is_sent(predict):
    with pytest.raises(InputError) as caught:
        predict("127.0.0.1:1", ["good", 5, b"\xff", "\ud800", None])
    assert [problem.where for problem in caught.value.problems] == [f"texts[{index}]" for index in (1, 2, 3, 4)]


def test_a_single_string_is_not_taken_for_a_list(predict):
    with pytest.raises(InputError, match="predict_one"):
        predict("127.0.0.1:1", "a review")


def test_thousands_of_wrong_texts_are_not_all_listed(serve, predict):
    with pytest.raises(InputError) as caught:
        predict(serve(ServedTexts()), ["x" * 101] * 1000)
    assert len(caught.value.problems) == 21
    assert "980 more" in caught.value.problems[-1].what


def test_an_unknown_model(serve, predict):
    with pytest.raises(InputError, match="serves no model 'nobody'"):
        predict(serve(ServedTexts()), ["x"], model="nobody")


def test_unavailable_is_tried_again(serve, predict):
    model = ServedTexts()
    model.failures = [(grpc.StatusCode.UNAVAILABLE, "going down")] * 2
    begin = time.monotonic()
    (answer,) = predict(serve(model), ["x"], retries=2)
    assert answer.label == "fair"
    assert len(model.requests) == 3
    assert time.monotonic() - begin > 0.15  # the shortest two pauses: 50 and 100 ms


def test_a_server_that_is_leaving_is_not_the_last(serve, predict):
    model = ServedTexts()
    leaving = (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'reviews' has no available versions")
    model.failures = [leaving]
    (answer,) = predict(serve(model), ["x"], retries=1)
    assert (answer.label, len(model.requests)) == ("fair", 2)
    model.failures = [leaving]
    with pytest.raises(ServerUnavailable, match="serves 'reviews' no more"):
        predict(serve(model), ["x"], retries=0)


def test_without_retries_it_is_not(serve, predict):
    model = ServedTexts()
    model.failures = [(grpc.StatusCode.UNAVAILABLE, "going down")]
    with pytest.raises(ServerUnavailable, match="going down"):
        predict(serve(model), ["x"], retries=0)
    assert len(model.requests) == 1


@pytest.mark.parametrize(
    ("status", "words", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "no", InputError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", Overloaded),
        (grpc.StatusCode.INTERNAL, "the encoder failed", ServingError),
    ],
)
def test_other_statuses_are_final(serve, predict, status, words, error):
    model = ServedTexts()
    model.failures = [(status, words)]
    with pytest.raises(error):
        predict(serve(model), ["x"], retries=5)
    assert len(model.requests) == 1


@pytest.mark.parametrize(
    "words",
    [
        "the model is overloaded: 2 requests are waiting already",
        "the request waited too long",
        "[request id: <id_unknown>] Exceeds maximum queue size",
        "Request timeout expired",
    ],
)
def test_a_full_queue_is_told_as_overload(serve, predict, words):
    model = ServedTexts()
    model.failures = [(grpc.StatusCode.UNAVAILABLE, words)] * 2
    with pytest.raises(Overloaded):
        predict(serve(model), ["x"], retries=1)
    assert len(model.requests) == 2


def test_the_deadline_bounds_an_answer(serve, predict):
    model = ServedTexts()
    model.delay = 1.0
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        predict(serve(model), ["x"], timeout=0.2)
    assert time.monotonic() - begin < 0.9


def test_the_deadline_bounds_retries_too(serve, predict):
    model = ServedTexts()
    model.failures = [(grpc.StatusCode.UNAVAILABLE, "going down")] * 100
    begin = time.monotonic()
    with pytest.raises(ServerUnavailable):
        predict(serve(model), ["x"], timeout=0.5, retries=100)
    assert time.monotonic() - begin < 0.7
    assert 2 <= len(model.requests) <= 6


def test_a_retry_gets_only_what_is_left_of_the_time(serve, predict):
    model = ServedTexts()
    model.failures = [(grpc.StatusCode.UNAVAILABLE, "going down")]
    model.delay = 0.3
    with pytest.raises(DeadlineExceeded):
        predict(serve(model), ["x"], timeout=0.5)
    assert len(model.requests) == 2


def test_retries_do_not_multiply_an_overload(serve):
    model = ServedTexts()
    url = serve(model)
    with Client(url, "reviews", retries=3, timeout=30) as client:
        client.predict_one("x")
        model.failures = [(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")] * 1000
        model.requests.clear()
        for _ in range(40):
            with pytest.raises(Overloaded):
                client.predict_one("x")
    # 40 requests, ten retries in reserve, and one more for each ten requests.
    assert 52 <= len(model.requests) <= 54


def test_nobody_answers(predict):
    with pytest.raises(ServerUnavailable, match="no server answers at"):
        predict(f"127.0.0.1:{free_ports().grpc}", ["x"])


def test_a_server_that_comes_back_is_found_by_the_retry(serve, predict):
    port = free_ports().grpc
    late = threading.Timer(0.3, lambda: serve(ServedTexts(), port=port))
    late.start()
    (answer,) = predict(f"127.0.0.1:{port}", ["x"], retries=5, timeout=10)
    assert answer.label == "fair"


def test_labels_are_those_of_the_release_that_answered(serve):
    model = ServedTexts()
    with Client(serve(model), "reviews") as client:
        assert client.predict_one("x").label == "fair"
        model.labels = {"8": ("no", "yes")}
        model.release = "8"
        answer = client.predict_one("x")
        assert (answer.label, answer.release) == ("yes", "8")
        assert list(answer.probabilities) == ["no", "yes"]
        configurations = model.configurations
        client.predict(TEXTS)
        assert model.configurations == configurations  # a release is asked about once


def test_a_release_that_is_gone_before_it_told_its_labels(serve):
    """It answers, is replaced, and knows nothing of its labels any more: the new one is asked instead."""

    class Replaced(ServedTexts):
        def ModelInfer(self, request, context):
            response = super().ModelInfer(request, context)
            if self.release == "7":
                self.labels, self.release = {"8": ("no", "yes")}, "8"
            return response

    with Client(serve(Replaced()), "reviews", retries=0) as client:
        assert client.predict_one("x").release == "8"


def test_a_new_release_may_take_smaller_requests(serve, predict):
    class Smaller(ServedTexts):
        def ModelInfer(self, request, context):
            self.max_batch_size = 2
            return super().ModelInfer(request, context)

    answers = predict(serve(Smaller(max_batch_size=8)), TEXTS, retries=0)
    assert [answer.label for answer in answers] == [label_of(text) for text in TEXTS]


@pytest.mark.parametrize(("task", "words"), [("tagging", "is of the task 'tagging'"), (None, "does not say of which")])
def test_a_task_that_has_no_typed_results(serve, predict, task, words):
    model = ServedTexts()
    model.task = task
    with pytest.raises(InputError, match=words):
        predict(serve(model), ["x"])


def test_labels_that_the_configuration_does_not_name(serve, predict):
    class Odd(ServedTexts):
        def ModelConfig(self, request, context):
            response = super().ModelConfig(request, context)
            response.config.parameters["label_names"].string_value = '["bad", "good"]'
            return response

    with pytest.raises(ServingError, match="other labels than its configuration names"):
        predict(serve(Odd()), ["x"])


def test_raw_arrays_go_in_and_come_out(serve):
    url = serve(ServedTexts())

    async def ask():
        async with AsyncClient(url, "reviews") as client:
            return await client.predict_raw({"TEXT": np.array([["x"], ["ää"]])})

    with Client(url, "reviews") as client:
        for answer in (
            client.predict_raw({"TEXT": np.array([[b"x"], ["ää".encode()]], dtype=object)}),
            asyncio.run(ask()),
        ):
            assert answer.release == "7"
            assert answer.outputs["LABEL"].tolist() == [[b"fair"], [b"fair"]]
            np.testing.assert_allclose(answer.outputs["PROBABILITIES"], [[0.1, 0.8, 0.1]] * 2)
        with pytest.raises(InputError, match="inputs: the model refuses"):
            client.predict_raw({"TEXT": np.array([["odd"]])})


def test_plain_rows_need_no_known_task(serve):
    model = ServedTexts()
    model.task = None
    rows = predict_texts(serve(model), "reviews", TEXTS, request_id="probe")
    assert model.ids == {"probe"}
    assert [row["LABEL"] for row in rows] == [label_of(text) for text in TEXTS]
    assert rows[0]["PROBABILITIES"] == pytest.approx([0.8, 0.1, 0.1])
    assert rows[0]["model_version"] == "7"


def test_a_client_may_be_shared_by_threads(serve):
    model = ServedTexts()
    found: list[list[str]] = []
    with Client(serve(model), "reviews") as client:
        threads = [
            threading.Thread(target=lambda: found.append([a.label for a in client.predict(TEXTS)])) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[label_of(text) for text in TEXTS]] * 8


def test_cancelling_ends_every_request(serve):
    model = ServedTexts()
    url = serve(model)

    async def ask():
        async with AsyncClient(url, "reviews", concurrency=2, timeout=30) as client:
            await client.predict_one("x")
            model.requests.clear()
            model.delay = 0.3
            asking = asyncio.create_task(client.predict(TEXTS))
            await asyncio.sleep(0.15)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.sleep(0.5)

    asyncio.run(ask())
    assert len(model.requests) == 2


def test_the_first_failure_calls_off_the_rest(serve, predict):
    model = ServedTexts()
    model.failures = [(grpc.StatusCode.INTERNAL, "the encoder failed")]
    model.delay = 0.02
    with pytest.raises(ServingError, match="the encoder failed"):
        predict(serve(model), TEXTS * 20, concurrency=2)
    assert len(model.requests) < 30  # of 150


@pytest.mark.parametrize("seconds", [0, math.inf, math.nan, 1e7])
def test_all_that_is_wrong_with_the_settings_is_told(seconds):
    for kind in (Client, AsyncClient):
        with pytest.raises(InputError) as caught:
            kind("http://host:8000", "", timeout=seconds, retries=-1, batch_size=0, concurrency=0, keepalive=seconds)
        assert [problem.where for problem in caught.value.problems] == [
            "url",
            "keepalive",
            "model",
            "timeout",
            "retries",
            "batch_size",
            "concurrency",
        ]


def test_importing_it_brings_nothing_of_training_or_serving():
    script = "import sys, stillhouse.client; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "tritonclient" in loaded
    heavy = {"torch", "mlflow", "kfp", "transformers", "tokenizers", "onnx", "onnxruntime", "pandas", "rich", "typer"}
    assert heavy & set(loaded) == set()
