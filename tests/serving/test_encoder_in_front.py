"""A front model that runs its encoder itself (`encoder_in_front`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_package import TEXTS, build_package, with_a_failing_word
from tritonclient import grpc

from stillhouse.client import Client
from stillhouse.errors import ServingError
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.serving.server import ServerConfig, start_server, stop_folder
from stillhouse.serving.triton import free_ports


def rows_encoded(url):
    """Rows that the encoder was asked for as a model of its own, warm-up apart."""
    with grpc.InferenceServerClient(url) as client:
        (statistics,) = client.get_inference_statistics("reviews-encoder").model_stats
    return statistics.inference_count


@pytest.fixture(scope="module")
def in_front(tmp_path_factory):
    """A server whose front model runs its encoder, and its package."""
    package = with_a_failing_word(
        build_package(tmp_path_factory.mktemp("package") / "package", encoder_in_front=True), "boom"
    )
    set_model_version(package / "triton", "reviews", "7")
    folder = tmp_path_factory.mktemp("server")
    yield start_server(ServerConfig(folder=folder, package=package, model="reviews", version="7", ports=free_ports()))
    stop_folder(folder)


def test_an_encoder_in_front_answers_the_same_and_the_other_is_not_asked(in_front):
    known = PackageRuntime(Path(in_front.package)).predict(TEXTS)
    before = rows_encoded(in_front.grpc_url)
    with Client(in_front.grpc_url, "reviews") as client:
        singles = [client.predict_one(text) for text in TEXTS]
        lists = client.predict(TEXTS)
        with ThreadPoolExecutor(8) as pool:
            crowd = list(pool.map(client.predict_one, TEXTS * 8))
    for answers in (singles, lists, *(crowd[row : row + len(TEXTS)] for row in range(0, len(crowd), len(TEXTS)))):
        assert [answer.label for answer in answers] == known.labels
        found = [list(answer.probabilities.values()) for answer in answers]
        np.testing.assert_allclose(found, known.probabilities, atol=1e-6)
    assert rows_encoded(in_front.grpc_url) == before


def test_an_encoder_in_front_can_be_called_by_itself(in_front):
    before = rows_encoded(in_front.grpc_url)
    ids = np.array([[2, 8, 3]])
    with Client(in_front.grpc_url, "reviews-encoder") as client:
        answer = client.predict_raw({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert answer.outputs["probabilities"].shape == (1, 3)
    assert rows_encoded(in_front.grpc_url) == before + 1


@pytest.mark.parametrize("many", [1, 2])
def test_an_encoder_in_front_that_fails_fails_its_request_alone(in_front, many):
    with Client(in_front.grpc_url, "reviews", retries=0) as client:
        for _ in range(3):
            with pytest.raises(ServingError, match="the encoder failed"):
                client.predict(["boom"] * many)
            assert client.predict_one("fine").release == "7"
