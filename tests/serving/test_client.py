"""`stillhouse.client` against Triton itself."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time

import numpy as np
import psutil
import pytest
from google.protobuf import json_format
from tiny_package import LABELS, TEXTS, build_package
from tritonclient import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stillhouse.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InputError,
    Overloaded,
    ServingError,
    predict_texts,
)
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.serving.server import ServerConfig, start_server, stop_folder
from stillhouse.serving.triton import free_ports

MANY = [TEXTS[index % len(TEXTS)] for index in range(203)]


@pytest.fixture(scope="module")
def known(package):
    return PackageRuntime(package).predict(TEXTS)


def as_known(answers, known):
    """Whether answers to `MANY` are the package's own, in order."""
    np.testing.assert_allclose(
        [list(answer.probabilities.values()) for answer in answers],
        [known.probabilities[index % len(TEXTS)] for index in range(len(MANY))],
        atol=1e-6,
    )
    return [answer.label for answer in answers] == [known.labels[index % len(TEXTS)] for index in range(len(MANY))]


def test_a_long_list(server, known):
    with Client(server.grpc_url, "reviews") as client:
        answers = client.predict(MANY)
        assert as_known(answers, known)
        assert {answer.release for answer in answers} == {"7"}
        assert tuple(answers[0].probabilities) == LABELS
        assert answers[0].probability == max(answers[0].probabilities.values())
        assert client.predict_one(TEXTS[1]).label == known.labels[1]


def test_a_long_list_awaited(server, known):
    async def ask():
        async with AsyncClient(server.grpc_url, "reviews", batch_size=5) as client:
            return await client.predict(MANY)

    assert as_known(asyncio.run(ask()), known)


def test_a_refused_text_is_named(server):
    texts = [*MANY, "x" * 401]
    with Client(server.grpc_url, "reviews") as client, pytest.raises(InputError) as caught:
        client.predict(texts)
    assert [problem.where for problem in caught.value.problems] == ["texts[203]"]


def test_an_unknown_model(server):
    with Client(server.grpc_url, "nobody") as client, pytest.raises(InputError, match="serves no model 'nobody'"):
        client.predict(["x"])


def test_a_deadline_holds_while_the_model_is_stuck(own_server):
    """In a server of its own, since Triton gives up a Python stub that was stuck for a second."""
    server = start_server(own_server)
    stubs = [child for child in psutil.Process(server.server_pid).children(recursive=True) if "stub" in child.name()]
    assert stubs
    with Client(server.grpc_url, "reviews", timeout=0.3) as client:
        client.predict_one(TEXTS[1])
        for stub in stubs:
            stub.suspend()
        try:
            begin = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                client.predict_one(TEXTS[1])
            assert 0.25 < time.monotonic() - begin < 1
        finally:
            for stub in stubs:
                stub.resume()


def test_the_encoder_takes_token_ids(server):
    """`predict_raw` is for any model."""
    ids = np.array([[2, 8, 3]], dtype=np.int64)
    with Client(server.grpc_url, "reviews-encoder") as client:
        answer = client.predict_raw({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert answer.outputs["probabilities"].shape == (1, len(LABELS))
    assert answer.outputs["probabilities"].sum() == pytest.approx(1, abs=1e-5)
    assert answer.release == "7"


def test_plain_rows(server, known):
    rows = predict_texts(server.grpc_url, "reviews", MANY)
    assert [row["LABEL"] for row in rows] == [known.labels[index % len(TEXTS)] for index in range(len(MANY))]
    assert {row["model_version"] for row in rows} == {"7"}


def test_the_documented_script(server, known):
    text = grpc.InferInput("TEXT", [2, 1], "BYTES")
    text.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS[:2]], dtype=np.object_))
    answer = grpc.InferenceServerClient(server.grpc_url).infer("reviews", [text], client_timeout=5)
    assert [label.decode() for label in answer.as_numpy("LABEL")[:, 0]] == known.labels[:2]


@pytest.mark.parametrize("raw", [False, True], ids=["bytes_contents", "raw_input_contents"])
def test_the_documented_json_is_what_triton_takes(server, known, raw):
    """What `grpcurl -d` sends is protobuf's JSON form of the request."""
    tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]}
    request = {"model_name": "reviews", "inputs": [tensor]}
    text = TEXTS[0].encode()
    if raw:
        request["raw_input_contents"] = [base64.b64encode(len(text).to_bytes(4, "little") + text).decode()]
    else:
        tensor["contents"] = {"bytes_contents": [base64.b64encode(text).decode()]}
    message = json_format.Parse(json.dumps(request), service_pb2.ModelInferRequest())
    with grpc.grpc.insecure_channel(server.grpc_url) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=5)
    answer = json.loads(json_format.MessageToJson(response))
    assert answer["modelVersion"] == "7"
    assert [output["name"] for output in answer["outputs"]] == ["PROBABILITIES", "LABEL"]
    probabilities, label = (base64.b64decode(content) for content in answer["rawOutputContents"])
    np.testing.assert_allclose(np.frombuffer(probabilities, "<f4"), known.probabilities[0], atol=1e-6)
    assert label[4:].decode() == known.labels[0]


def test_a_full_queue_is_told_as_overload(tmp_path):
    """The words for both ways to be turned away are understood."""
    package = build_package(tmp_path / "package", max_queue_size=2, max_wait_ms=200)
    set_model_version(package / "triton", "reviews", "7")
    folder = tmp_path / "server"
    folder.mkdir()
    config = ServerConfig(
        folder=folder, package=package, model="reviews", version="7", ports=free_ports(), probe_interval=60
    )
    server = start_server(config)
    children = psutil.Process(server.server_pid).children(recursive=True)
    encoders = [child for child in children if any("reviews-encoder/" in part for part in child.cmdline())]
    assert encoders
    outcomes = []

    def ask():
        try:
            outcomes.append(client.predict_one(TEXTS[1]).label)
        except ServingError as error:
            outcomes.append(error)

    try:
        with Client(server.grpc_url, "reviews", retries=0) as client:
            client.predict_one(TEXTS[1])
            # Of several texts, so that it is no lone caller's: one of those would be in the way of the others.
            first = threading.Thread(target=lambda: client.predict(TEXTS[:2]))
            threads = [first, *(threading.Thread(target=ask) for _ in range(10))]
            for encoder in encoders:
                encoder.suspend()
            for thread in threads:
                thread.start()
                time.sleep(0.02)
            time.sleep(0.6)
            at_once = list(outcomes)
            for encoder in encoders:
                encoder.resume()
            for thread in threads:
                thread.join()
    finally:
        stop_folder(folder)
    assert len(at_once) >= 5
    assert all(isinstance(outcome, Overloaded) and "are waiting already" in str(outcome) for outcome in at_once)
    late = [outcome for outcome in outcomes if isinstance(outcome, Overloaded) and "waited too long" in str(outcome)]
    assert late
    answered = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(at_once) + len(late) + len(answered) == 10
