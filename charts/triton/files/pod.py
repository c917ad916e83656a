"""What the kubelet runs inside Triton's container: probes, and the hook that ends it without loss.

    python3 pod.py live MODEL     one real inference; also where Triton itself still says that all is well
    python3 pod.py ready MODEL    Triton and the model say that they are ready
    python3 pod.py drain MODEL    waits until callers have gone, then until everything accepted is answered

It speaks HTTP over loopback, and needs nothing but Python's standard library: either of the images that serve has that.
The environment variable POD_KEY opens Triton's calls that administer models. Exit code 0, or 1 with the reason on
standard error, which ends up in the pod's events.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from typing import Any

HEADER = "closed"
"""Header of the key, as `--http-restricted-api` names it."""
PROBE_ID = "stillhouse-probe"
"""Requests with this id stay out of the request log."""
PAUSE = 0.2


class Trouble(Exception):
    """Why the probe or the hook failed, in words."""


class Triton:
    """Triton's HTTP endpoint on loopback.

    Args:
        port: where it listens.
        key: opens what administers models.
    """

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key

    def call(self, method: str, path: str, body: Any = None, *, timeout: float) -> tuple[int, Any]:
        """Status and JSON body of an answer.

        Raises:
            OSError: nobody listens, or the connection broke, or time is over.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=max(timeout, 0.1))
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {HEADER: self._key})
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text) if text else {}
        except ValueError:
            return answer.status, {"error": text[:200].decode(errors="replace")}


def live(triton: Triton, model: str, timeout: float) -> str:
    """One inference, which a front model under load puts before all else and does not refuse."""
    # A text that was not asked before, so that the answer is not one from a cache.
    texts = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [f"probe {time.time_ns()}"]}
    status, body = triton.call(
        "POST", f"/v2/models/{model}/infer", {"id": PROBE_ID, "inputs": [texts]}, timeout=timeout
    )
    if status == 200 and body.get("outputs"):
        return f"version {body.get('model_version')} answered"
    raise Trouble(f"status {status}: {body.get('error', body)}")


def ready(triton: Triton, model: str, timeout: float) -> str:
    """What Triton says of itself and of the model."""
    for path in ("/v2/health/ready", f"/v2/models/{model}/ready"):
        status, body = triton.call("GET", path, timeout=timeout)
        if status != 200:
            raise Trouble(f"{path}: status {status} {body or ''}")
    return "ready"


def drain(triton: Triton, model: str, delay: float, timeout: float) -> str:
    """Serve on for `delay` seconds, then unload the public model and wait until it has answered what it accepted.

    From SIGTERM on, Triton refuses the calls that models make among themselves, and accepted requests would be lost.
    An unloaded model first answers them, for which it has `timeout` seconds.
    """
    index = "/v2/repository/index"
    try:
        triton.call("POST", index, timeout=5)
        time.sleep(delay)
        deadline = time.monotonic() + timeout
        status, body = triton.call("POST", f"/v2/repository/models/{model}/unload", timeout=timeout)
        if status != 200:
            raise Trouble(f"unloading {model}: status {status}: {body.get('error', body)}")
        while time.monotonic() < deadline:
            status, body = triton.call("POST", index, timeout=deadline - time.monotonic())
            if status != 200:
                raise Trouble(f"{index}: status {status}: {body.get('error', body)}")
            if any(entry["name"] == model and entry.get("reason") == "unloaded" for entry in body):
                return "everything that was accepted is answered"
            time.sleep(PAUSE)
    except ConnectionRefusedError:
        return "there is no server to drain"
    raise Trouble(f"{model} still has requests to answer after {timeout:g} s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Probes, and the hook that ends Triton without loss.")
    parser.add_argument("what", choices=["live", "ready", "drain"])
    parser.add_argument("model", help="name of the public model")
    parser.add_argument("--port", type=int, default=8000, help="of Triton's HTTP on loopback")
    parser.add_argument("--timeout", type=float, default=10, help="seconds that the answer may take")
    parser.add_argument("--delay", type=float, default=0, help="seconds to go on serving before draining")
    options = parser.parse_args()
    triton = Triton(options.port, os.environ.get("POD_KEY", ""))
    try:
        if options.what == "live":
            message = live(triton, options.model, options.timeout)
        elif options.what == "ready":
            message = ready(triton, options.model, options.timeout)
        else:
            message = drain(triton, options.model, options.delay, options.timeout)
    except (Trouble, OSError) as error:
        print(f"{options.what}: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print(message)
    return 0


if __name__ == "__main__":
    sys.exit(main())
