"""Families whose encoders are made otherwise than BERT's, behind Triton."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_checkpoints import FAMILIES, POSITIONS, write_model, write_reviews
from tritonclient import grpc

from stillhouse.evaluation.pytorch import CheckpointRuntime
from stillhouse.export import PackageConfig
from stillhouse.export.package import package_model
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.server import ServerConfig, start_server, stop_folder
from stillhouse.serving.triton import free_ports

TEXTS = ["A lovely evening.", "", "awful <s>good</s> service", "the room was dull and the food cold " * 12]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_as_it_does_in_pytorch(family: str, tmp_path: Path):
    """BART is read at its last end token, of which what the server warms it up with has none."""
    dataset = write_reviews(tmp_path / "dataset")
    model = write_model(tmp_path / "model", family, dataset)
    config = PackageConfig(served_name="reviews", precisions="fp32")
    package_model(config, model_dir=model, dataset_dir=dataset, output_dir=tmp_path / "packages")
    package = tmp_path / "packages" / "fp32"
    set_model_version(package / "triton", "reviews", "7")
    (tmp_path / "server").mkdir()
    server = start_server(
        ServerConfig(folder=tmp_path / "server", package=package, model="reviews", version="7", ports=free_ports())
    )
    try:
        tensor = grpc.InferInput("TEXT", [len(TEXTS), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=np.object_))
        with grpc.InferenceServerClient(server.grpc_url) as client:
            served = client.infer("reviews", [tensor]).as_numpy("PROBABILITIES")
    finally:
        stop_folder(tmp_path / "server")
    known = CheckpointRuntime(model, threads=1)
    expected = np.concatenate([known.predict([text]).probabilities for text in TEXTS])
    assert max(len(text.split()) for text in TEXTS) > POSITIONS
    np.testing.assert_allclose(served, expected, atol=1e-5)
