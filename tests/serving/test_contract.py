"""What the public model promises, asked with a plain tritonclient."""

from __future__ import annotations

import queue
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from tiny_package import LABELS, TEXTS, build_package
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from stillhouse.client import predict_texts
from stillhouse.errors import InputError, ServingError
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.serving.server import is_answering, start_server
from stillhouse.serving.triton import free_ports


@pytest.fixture(scope="module")
def client(server):
    with grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def known(package):
    return PackageRuntime(package).predict(TEXTS)


def text_input(texts):
    tensor = grpc.InferInput("TEXT", [len(texts), 1], "BYTES")
    values = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return [tensor.set_data_from_numpy(np.array(values, dtype=np.object_).reshape(-1, 1))]


def test_metadata(client):
    metadata = client.get_model_metadata("reviews")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("TEXT", "BYTES", [-1, 1])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("PROBABILITIES", "FP32", [-1, len(LABELS)]),
        ("LABEL", "BYTES", [-1, 1]),
    ]
    assert list(metadata.versions) == ["7"]


def test_batch_of_mixed_lengths_equals_single_answers(client, known):
    result = client.infer("reviews", text_input(TEXTS))
    assert result.get_response().model_version == "7"
    probabilities, labels = result.as_numpy("PROBABILITIES"), result.as_numpy("LABEL")
    assert probabilities.dtype == np.float32
    assert labels.shape == (len(TEXTS), 1)
    np.testing.assert_allclose(probabilities, known.probabilities, atol=1e-6)
    assert [label.decode() for label in labels[:, 0]] == known.labels
    for row, text in enumerate(TEXTS):
        single = client.infer("reviews", text_input([text]))
        np.testing.assert_allclose(single.as_numpy("PROBABILITIES")[0], probabilities[row], atol=1e-6)
        assert single.as_numpy("LABEL")[0, 0] == labels[row, 0]


def test_one_output_may_be_asked_for(client, known):
    result = client.infer("reviews", text_input(TEXTS[:2]), outputs=[grpc.InferRequestedOutput("LABEL")])
    assert [label.decode() for label in result.as_numpy("LABEL")[:, 0]] == known.labels[:2]
    assert result.as_numpy("PROBABILITIES") is None


def executions_with_company(client):
    """Calls of the encoder with more than one row; every request here has one text."""
    (statistics,) = client.get_inference_statistics("reviews-encoder").model_stats
    return sum(s.compute_infer.count for s in statistics.batch_stats if s.batch_size > 1)


def test_refused_text_leaves_its_neighbours_alone(client, known):
    """Requests are sent at once until some were put into one batch; each is answered for itself."""
    bad = {3: b"x" * 401, 5: b"broken \xff utf-8"}
    texts = [bad.get(index, TEXTS[index % len(TEXTS)]) for index in range(24)]
    before = executions_with_company(client)
    for _ in range(20):
        answers: queue.Queue = queue.Queue()
        for index, text in enumerate(texts):
            client.async_infer(
                "reviews",
                text_input([text]),
                lambda result, error, index=index, answers=answers: answers.put((index, result, error)),
            )
        for _ in texts:
            index, result, error = answers.get(timeout=60)
            if index in bad:
                assert "INVALID_ARGUMENT" in error.status()
                assert ("401 bytes; the limit of this model is 400" if index == 3 else "UTF-8") in error.message()
            else:
                assert error is None
                row = index % len(TEXTS)
                np.testing.assert_allclose(result.as_numpy("PROBABILITIES")[0], known.probabilities[row], atol=1e-6)
                assert result.as_numpy("LABEL")[0, 0].decode() == known.labels[row]
        if executions_with_company(client) > before:
            return
    pytest.fail("no requests were ever batched, so nothing was shown")


def test_bad_text_refuses_its_whole_request(client):
    with pytest.raises(InferenceServerException, match="401 bytes"):
        client.infer("reviews", text_input(["fine", "x" * 401]))


def test_more_rows_than_the_batch_size_are_refused(client):
    with pytest.raises(InferenceServerException, match="batch-size must be <= 8"):
        client.infer("reviews", text_input(["a"] * 9))


def test_predict_texts_splits_what_is_too_many(server, known):
    rows = predict_texts(server.grpc_url, "reviews", TEXTS * 5)
    assert len(rows) == 40
    assert [row["LABEL"] for row in rows] == known.labels * 5
    assert {row["model_version"] for row in rows} == {"7"}
    np.testing.assert_allclose([row["PROBABILITIES"] for row in rows[:8]], known.probabilities, atol=1e-6)
    assert predict_texts(server.grpc_url, "reviews", []) == []


def test_predict_texts_explains(server):
    with pytest.raises(InputError, match=r"texts\[0\]: has 401 bytes; the limit of 'reviews' is 400"):
        predict_texts(server.grpc_url, "reviews", ["x" * 401])
    with pytest.raises(InputError, match="serves no model 'nobody'"):
        predict_texts(server.grpc_url, "nobody", ["x"])
    with pytest.raises(ServingError, match="no server answers at"):
        predict_texts(f"127.0.0.1:{free_ports().grpc}", "reviews", ["x"], timeout=5)


def test_proxy_settings_do_not_reach_loopback(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_ports().grpc}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert len(predict_texts(server.grpc_url, "reviews", ["good"])) == 1


def test_http_and_metrics_answer_and_administration_is_closed(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.http}/v2/health/ready", timeout=10) as response:
        assert response.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=10) as response:
        assert b'nv_inference_request_success{model="reviews",version="7"}' in response.read()
    request = urllib.request.Request(f"http://127.0.0.1:{server.ports.http}/v2/repository/index", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 403
    with (
        grpc.InferenceServerClient(server.grpc_url) as client,
        pytest.raises(InferenceServerException, match="restricted"),
    ):
        client.unload_model("reviews")


def test_repeated_texts_come_from_the_cache_and_latencies_are_summarised(own_server, tmp_path):
    package = build_package(tmp_path / "package", response_cache=True)
    status = start_server(replace(own_server, package=package, version="1"))
    with grpc.InferenceServerClient(status.grpc_url) as client:
        answers = [client.infer("reviews", text_input(["a great film"])) for _ in range(3)]
        (statistics,) = client.get_inference_statistics("reviews").model_stats
    assert statistics.inference_stats.cache_hit.count == 2
    assert len({answer.as_numpy("PROBABILITIES").tobytes() for answer in answers}) == 1
    assert is_answering(status)  # asks what was not asked before: an answer from the cache would prove nothing
    with grpc.InferenceServerClient(status.grpc_url) as client:
        (later,) = client.get_inference_statistics("reviews").model_stats
    assert later.inference_stats.cache_hit.count == 2
    with urllib.request.urlopen(f"http://127.0.0.1:{status.ports.metrics}/metrics") as page:
        assert (
            'nv_inference_request_summary_us{model="reviews-encoder",version="1",quantile="0.99"}'
            in page.read().decode()
        )
