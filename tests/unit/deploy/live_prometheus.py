"""A real Prometheus (Debian's), and pods of a track as it sees them: HTTP servers that export what Triton does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from debian import can_install, install

from stillhouse.serving.triton import free_ports

NAMESPACE, RELEASE = "models", "reviews"


def prometheus_program(name: str = "prometheus") -> str:
    """Path of `prometheus` or `promtool`, which is installed where it can be; else the test is skipped."""
    if (found := shutil.which(name)) is None:
        if not can_install():
            pytest.skip("Prometheus is not installed, and installing it needs root and apt-get")
        install("prometheus")
        if (found := shutil.which(name)) is None:
            pytest.skip("Prometheus is not installed, and apt-get could not install it")
    return found


def target(address: str, pod: str, track: str) -> dict[str, Any]:
    """A pod as the chart's ServiceMonitor has it labelled."""
    labels = {"namespace": NAMESPACE, "pod": pod, "stillhouse_release": RELEASE, "stillhouse_track": track}
    return {"targets": [address], "labels": labels}


@contextlib.contextmanager
def prometheus(folder: Path, targets: Sequence[dict[str, Any]], *, every: str = "250ms") -> Iterator[str]:
    """Prometheus scraping those targets; yields its address when it has scraped each of them."""
    program = prometheus_program()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "global": {"scrape_interval": every, "scrape_timeout": every},
        "scrape_configs": [{"job_name": "pods", "static_configs": list(targets)}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    port = free_ports().http
    command = [
        program, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    asked = f"{address}/api/v1/query?query=count(up==1)"
    try:
        for _ in range(300):  # it takes five seconds to take its first targets up
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
                if found and int(found[0]["value"][1]) == len(targets):
                    break
            time.sleep(0.1)
        else:
            raise AssertionError(f"not all of {targets} were scraped: {found}")
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


@dataclass
class Pod:
    """Exports the metrics of one pod of charts/triton, from what it is told that it answered."""

    name: str
    track: str
    version: str
    model: str = "reviews"
    requests: int = 0
    failed: int = 0
    refused: int = 0
    mean_ms: float = 10.0
    p99_ms: float = 30.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        pod = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pod.metrics().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def target(self) -> dict[str, Any]:
        return target(f"127.0.0.1:{self.server.server_port}", self.name, self.track)

    def answer(self, requests: int, *, failed: int = 0, refused: int = 0) -> None:
        with self._lock:
            self.requests, self.failed = self.requests + requests, self.failed + failed
            self.refused += refused

    def restart(self) -> None:
        with self._lock:
            self.requests = self.failed = self.refused = 0

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def metrics(self) -> str:
        """As Triton 2.51 writes them, with its order and its types; the front model's errors are successes to it."""
        labels = f'model="{self.model}",version="{self.version}"'
        with self._lock:
            lines = [
                f"nv_inference_request_success{{{labels}}} {self.requests}",
                *(
                    f'nv_inference_request_failure{{model="{self.model}",reason="{reason}",version="{self.version}"}} 0'
                    for reason in ("OTHER", "BACKEND", "CANCELED", "REJECTED")
                ),
                f"nv_inference_request_duration_us{{{labels}}} {round(self.requests * self.mean_ms * 1000)}",
                *(
                    f'nv_inference_request_summary_us{{{labels},quantile="{quantile}"}} '
                    + (str(1000 * value) if self.requests else "Nan")
                    for quantile, value in (("0.5", self.mean_ms), ("0.99", self.p99_ms))
                ),
                f"stillhouse_requests_total{{{labels}}} {self.requests - self.refused}",
                f"stillhouse_probes_total{{{labels}}} 0",
                f"stillhouse_requests_failed_total{{{labels}}} {self.failed}",
                f"stillhouse_requests_refused_total{{{labels}}} {self.refused}",
                f"stillhouse_requests_invalid_total{{{labels}}} 0",
                f"stillhouse_queue_seconds_total{{{labels}}} {self.requests * 0.002}",
            ]
        return "\n".join(lines) + "\n"
