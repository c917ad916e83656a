"""The client of Prometheus' API, before servers that answer as gateways, login pages and broken ones do."""

from __future__ import annotations

import json
import math
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from stillhouse.deploy.canary.prometheus import (
    CA_VARIABLE,
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
    Prometheus,
    prometheus_problems,
    quoted,
)
from stillhouse.errors import InputError, ServerUnavailable, ServingError

SECRET = "s3cret.token"


class Web:
    """A server that answers each question in the same way, and keeps what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.status, self.headers, self.body = 200, {}, b""
        self.asked: list[tuple[str, dict[str, str]]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append((self.path, dict(self.headers)))
                self.send_response(web.status)
                for name, value in web.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(web.body)))
                self.end_headers()
                self.wfile.write(web.body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answers(self, status: int = 200, body: Any = "", **headers: str) -> None:
        self.status, self.headers = status, headers
        self.body = (body if isinstance(body, str) else json.dumps(body)).encode()


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


def success(kind: str, result: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": result}}


def test_series_come_with_their_labels_and_what_is_no_number(web: Web):
    rows = [
        {"metric": {"pod": "a"}, "values": [[1, "2"], [2.5, "NaN"]]},
        {"metric": {"pod": "b"}, "values": [[1, "+Inf"]]},
    ]
    web.answers(body=success("matrix", rows))
    one, other = Prometheus(f"{web.url}/prefix/", environment={}).query('up{pod=~"a|b"}[1m]', at=12.3456)
    assert one.labels == {"pod": "a"} and one.samples[0] == (1.0, 2.0) and math.isnan(one.samples[1][1])
    assert other.samples == [(1.0, math.inf)]
    ((path, headers),) = web.asked
    assert urlsplit(path).path == "/prefix/api/v1/query"
    assert parse_qs(urlsplit(path).query) == {
        "query": ['up{pod=~"a|b"}[1m]'], "time": ["12.346"], "timeout": ["30s"], "partial_response": ["false"],
    }  # fmt: skip
    assert "Authorization" not in headers
    web.answers(body=success("vector", [{"metric": {}, "value": [1, "3"]}]))
    assert Prometheus(web.url, environment={}).query("sum(up)")[0].samples == [(1.0, 3.0)]


def test_a_token_is_sent_and_one_in_a_file_is_read_anew(web: Web, tmp_path: Path):
    web.answers(body=success("vector", []))
    Prometheus(web.url, environment={TOKEN_VARIABLE: f"{SECRET}\n"}).query("up")
    (file := tmp_path / "token").write_text("first\n")
    prometheus = Prometheus(web.url, environment={TOKEN_FILE_VARIABLE: str(file)})
    prometheus.query("up")
    file.write_text("second")
    prometheus.query("up")
    assert [headers["Authorization"] for _, headers in web.asked] == [
        f"Bearer {SECRET}",
        "Bearer first",
        "Bearer second",
    ]


def test_a_redirect_is_told_and_not_followed_with_the_token(web: Web):
    other = Web()
    try:
        web.answers(302, Location=f"{other.url}/login?state=abc")
        with pytest.raises(
            ServingError, match=r"redirects to http://127\.0\.0\.1:\d+/login, which is not followed"
        ) as told:
            Prometheus(web.url, environment={TOKEN_VARIABLE: SECRET}).query("up")
        assert other.asked == []
        assert SECRET not in str(told.value) and "state=abc" not in str(told.value)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, "", ServingError, f"does not let us ask (401). Give a bearer token in {TOKEN_VARIABLE}"),
        (404, "404 page not found", ServingError, "no API there (404)"),
        (400, {"status": "error", "errorType": "bad_data", "error": "1:3: parse"}, ServingError, "(400): 1:3: parse"),
        (422, {"status": "error", "errorType": "execution", "error": "many-to-many"}, ServingError, "many-to-many"),
        (503, {"status": "error", "errorType": "timeout", "error": "timed out"}, ServerUnavailable, "(503): timed out"),
        (502, "<html>Bad gateway", ServerUnavailable, "cannot answer now (502)."),
        (429, "", ServerUnavailable, "cannot answer now (429)."),
        (200, "<html>Log in", ServingError, "did not answer as Prometheus does"),
        (200, {"data": {}}, ServingError, "did not answer as Prometheus does"),
        (200, success("scalar", [1, "2"]), ServingError, "with a scalar"),
        (200, success("vector", [{"metric": {}}]), ServingError, "cannot be read"),
        (200, success("vector", [{"metric": {}, "value": [1, "x"]}]), ServingError, "cannot be read"),
    ],
)  # fmt: skip
def test_each_refusal_is_explained(web: Web, status: int, body: Any, kind: type[ServingError], said: str):
    web.answers(status, body)
    with pytest.raises(ServingError) as told:
        Prometheus(web.url, environment={}).query("up")
    assert type(told.value) is kind
    assert said in str(told.value) and str(told.value).startswith(f"Prometheus at {web.url} ")


def test_a_token_that_is_not_accepted_is_not_shown(web: Web):
    web.answers(403, SECRET)
    with pytest.raises(ServingError, match="The token is not accepted") as told:
        Prometheus(web.url, environment={TOKEN_VARIABLE: SECRET}).query("up")
    assert SECRET not in str(told.value) and SECRET not in repr(
        Prometheus(web.url, environment={TOKEN_VARIABLE: SECRET})
    )


def test_whoever_does_not_answer_may_do_so_later():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(ServerUnavailable, match="does not answer: Connection refused"):
            Prometheus(f"http://127.0.0.1:{held.getsockname()[1]}", environment={}).now()
        held.listen()  # takes the connection and says nothing
        with pytest.raises(ServerUnavailable, match="does not answer: timed out"):
            Prometheus(f"http://127.0.0.1:{held.getsockname()[1]}", environment={}, timeout_s=0.2).now()


def test_an_authority_of_ones_own_is_trusted_where_it_is_named(tmp_path: Path):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web = Web(context)
    try:
        web.answers(body=success("scalar", [12.5, "12.5"]))
        assert Prometheus(web.url, environment={CA_VARIABLE: str(certificate)}).now() == 12.5
        with pytest.raises(ServingError, match=f"not trusted: name its authority's file in {CA_VARIABLE}") as told:
            Prometheus(web.url, environment={}).now()
        assert type(told.value) is ServingError  # asking again would not help
        with pytest.raises(ServingError):
            Prometheus(web.url.replace("https", "http"), environment={}).now()
    finally:
        web.close()


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "is not the address"),
        ("prometheus:9090", "is not the address"),
        ("ftp://prometheus", "is not the address"),
        ("http://prometheus:port", "is not the address"),
        ("http://prome theus", "is not the address"),
        ("http://user:hunter2@prometheus", "user name or password"),
        ("http://prometheus/api?tenant=hunter2", "query or fragment"),
    ],
)
def test_a_wrong_address_is_refused_before_it_is_asked(url: str, what: str):
    (problem,) = prometheus_problems(url)
    assert what in problem.what and "hunter2" not in str(problem)
    with pytest.raises(InputError):
        Prometheus(url, environment={})


def test_files_that_are_not_there_are_named(tmp_path: Path):
    for name, path in ((TOKEN_FILE_VARIABLE, tmp_path / "none"), (CA_VARIABLE, tmp_path / "none")):
        with pytest.raises(InputError, match=name):
            Prometheus("http://prometheus", environment={name: str(path)})
    with pytest.raises(InputError, match="does not hold a bearer token"):
        Prometheus("http://prometheus", environment={TOKEN_VARIABLE: "two words\r\nX-Evil: 1"})


def test_text_becomes_a_string_of_promql():
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
