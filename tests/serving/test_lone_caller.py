"""A lone caller's text is answered by the thread that takes it in, and no other is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_package import TEXTS, build_package

from stillhouse.artifacts import PackageManifest
from stillhouse.client import Client, DeadlineExceeded
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.serving.server import start_server


def test_one_text_needs_no_worker_and_several_do(tmp_path, own_server):
    package = build_package(tmp_path / "package")
    set_model_version(package / "triton", "reviews", "7")
    changes = {
        "model.py": ("target=self._work,", "target=lambda: None,"),
        "batch_queue.py": ("_PASSING = 3", "_PASSING = 999"),
    }
    for name, (old, new) in changes.items():
        source = package / "triton" / "reviews" / "7" / name
        text = source.read_text(encoding="utf-8")
        assert text.count(old) == 1
        source.write_text(text.replace(old, new), encoding="utf-8")
    PackageManifest.load(package).save(package)
    status = start_server(replace(own_server, package=package, probe_interval=60.0))
    known = PackageRuntime(package).predict(TEXTS)
    with Client(status.grpc_url, "reviews", retries=0, timeout=5.0) as client:
        for row, text in enumerate(TEXTS):
            answer = client.predict_one(text)
            assert (answer.label, answer.release) == (known.labels[row], "7")
            np.testing.assert_allclose(list(answer.probabilities.values()), known.probabilities[row], atol=1e-6)
        with pytest.raises(DeadlineExceeded):
            client.predict(["one", "two"])
