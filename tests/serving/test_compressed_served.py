"""A pruned and statically quantised package, served by Triton as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from leftovers import remains
from random_checkpoint import write_dataset, write_model

from stillhouse.client import Client
from stillhouse.export import PackageConfig
from stillhouse.export.package import package_model
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.serving.server import ServerConfig, start_server, stop_folder
from stillhouse.serving.triton import free_ports

TEXTS = ["word1 word2 word3", "word40", "", "word7 word9 " * 30]


def test_triton_answers_as_the_package_itself_does(tmp_path: Path):
    dataset, model = write_dataset(tmp_path / "dataset"), write_model(tmp_path / "model", "albert", pruned=True)
    config = PackageConfig(served_name="reviews", precisions="fp32,int8-static", calibration_rows=32)
    package_model(config, model_dir=model, dataset_dir=dataset, output_dir=tmp_path / "packages")
    package = tmp_path / "packages" / "int8-static"
    known = PackageRuntime(package).predict(TEXTS)
    set_model_version(package / "triton", "reviews", "3")
    folder = tmp_path / "server"
    folder.mkdir()
    server = start_server(
        ServerConfig(folder=folder, package=package, model="reviews", version="3", ports=free_ports())
    )
    try:
        with Client(server.grpc_url, "reviews") as client:
            answers = list(client.predict(TEXTS))
    finally:
        stop_folder(folder)
    assert [answer.label for answer in answers] == known.labels
    found = np.array([list(answer.probabilities.values()) for answer in answers])
    np.testing.assert_allclose(found, known.probabilities, atol=1e-5)
    assert {answer.release for answer in answers} == {"3"}
    assert remains(folder) == []
