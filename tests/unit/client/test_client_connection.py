"""TLS, round robin and keepalive over real connections on loopback."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from served_model import LABELS, ServedTexts, label_of
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.client import Client, InputError, ServerUnavailable, ServingError, Tls
from stillhouse.client.connection import Connection


class Certificate(NamedTuple):
    key: Path
    chain: Path


@pytest.fixture(scope="module")
def certify(tmp_path_factory):
    """Makes certificates: `certify(name)` an authority's, `certify(name, by=authority)` one of loopback's."""
    folder = tmp_path_factory.mktemp("certificates")
    signers = {}

    def make(name: str, by: str | None = None) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer, signer = (subject, key) if by is None else signers[by]
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        )
        if by is not None:
            loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        signers[name] = (subject, key)
        files = Certificate(folder / f"{name}.key", folder / f"{name}.pem")
        form = serialization.PrivateFormat.PKCS8
        plain = serialization.NoEncryption()
        files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        files.chain.write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return files

    return make


@pytest.fixture(scope="module")
def authority(certify):
    return certify("authority")


def server_credentials(own: Certificate, clients: Certificate | None = None):
    return grpc.ssl_server_credentials(
        [(own.key.read_bytes(), own.chain.read_bytes())],
        root_certificates=clients.chain.read_bytes() if clients else None,
        require_client_auth=clients is not None,
    )


def test_tls(serve, predict, authority, certify):
    url = serve(ServedTexts(), credentials=server_credentials(certify("server", by="authority")))
    assert predict(url, ["x"], tls=Tls(authority.chain))[0].label == "fair"
    with pytest.raises(ServerUnavailable):
        predict(url, ["x"], retries=0)  # in the clear
    with pytest.raises(ServerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        predict(url, ["x"], tls=Tls(certify("stranger").chain), retries=0)


def test_mutual_tls(serve, predict, authority, certify):
    url = serve(ServedTexts(), credentials=server_credentials(certify("server", by="authority"), clients=authority))
    caller = certify("caller", by="authority")
    assert predict(url, ["x"], tls=Tls(authority.chain, caller.key, caller.chain))[0].label == "fair"
    with pytest.raises(ServerUnavailable):
        predict(url, ["x"], tls=Tls(authority.chain), retries=0)


@pytest.mark.slow
def test_the_smoke_test_by_tls(serve, authority, certify):
    """`stillhouse smoke` against a server that shows who it is, and asks who calls."""
    model = ServedTexts()
    url = serve(model, credentials=server_credentials(certify("server", by="authority"), clients=authority))
    caller = certify("caller", by="authority")
    command = ["smoke", "--url", url, "--model", "reviews", "--version", "7", "--timeout", "1"]
    mutual = ["--tls-ca", str(authority.chain), "--tls-cert", str(caller.chain), "--tls-key", str(caller.key)]
    done = CliRunner().invoke(app, [*command, *mutual])
    assert "1 of 1 answers agree" in done.stdout, done.exception
    assert model.ids == {"stillhouse-probe"}  # which no request log records
    for options in ([], ["--tls"], ["--tls-ca", str(authority.chain)]):
        done = CliRunner().invoke(app, [*command, *options])
        assert isinstance(done.exception, ServingError), options
    done = CliRunner().invoke(app, [*command, "--tls-cert", str(caller.chain)])
    assert "tls.private_key" in str(done.exception)


@pytest.mark.slow
def test_asking_and_measuring_by_tls(serve, authority, certify, tmp_path):
    """`stillhouse predict` and `stillhouse bench serve` against such a server."""
    url = serve(ServedTexts(), credentials=server_credentials(certify("server", by="authority"), clients=authority))
    caller = certify("caller", by="authority")
    mutual = ["--tls-ca", str(authority.chain), "--tls-cert", str(caller.chain), "--tls-key", str(caller.key)]
    endpoint = ["--url", url, "--model", "reviews"]
    load = ["bench", "serve", *endpoint, "-c", "1", "--seconds", "0.2", "--output", str(tmp_path), "--json"]
    for command in (["predict", "fine", *endpoint], load):
        done = CliRunner().invoke(app, [*command, *mutual])
        assert done.exit_code == 0, done.exception
        assert isinstance(CliRunner().invoke(app, command).exception, ServingError), "in the clear"
        done = CliRunner().invoke(app, [*command, "--tls-cert", str(caller.chain)])
        assert "tls.private_key" in str(done.exception)
    assert json.loads((tmp_path / "bench.json").read_text())["settings"]["tls"] is True


def test_all_that_is_wrong_with_the_files_is_told(authority, certify, tmp_path):
    with pytest.raises(InputError) as caught:
        Client("localhost:1", "reviews", tls=Tls(tmp_path / "absent.pem", certify("caller").chain))
    assert [problem.where for problem in caught.value.problems] == [
        "tls.root_certificates",
        "tls.private_key",
        "tls.certificate_chain",
    ]


def test_round_robin_asks_every_address(serve, predict):
    models = [ServedTexts(), ServedTexts()]
    addresses = [serve(model) for model in models]
    texts = ["x"] * 40  # ten requests
    for balance, least in ((True, 4), (False, 0)):
        for model in models:
            model.requests.clear()
        predict("ipv4:" + ",".join(addresses), texts, balance=balance, concurrency=1)
        counts = sorted(len(model.requests) for model in models)
        assert sum(counts) == 10
        assert counts[0] >= least if balance else counts[0] == 0


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_round_robin_over_replicas_one_of_which_is_at_another_release(serve, predict, replicas):
    """A canary: what answers is asked for its labels, and the turn is the others' by then."""
    models = [ServedTexts(release="8" if number == 0 else "7") for number in range(replicas)]
    models[0].labels["8"] = ("poor", "so-so", "fine")
    url = "ipv4:" + ",".join(serve(model) for model in models)
    texts = ["x" * (1 + number % 3) for number in range(40)]
    answers = predict(url, texts, balance=True, concurrency=1, batch_size=1, retries=0)
    assert {answer.release for answer in answers} == {"7", "8"}
    for text, answer in zip(texts, answers, strict=True):
        labels = models[0].labels["8"] if answer.release == "8" else LABELS
        assert answer.label == label_of(text.encode(), labels)


def test_round_robin_goes_on_without_one_that_ended(serve, predict):
    gone = f"127.0.0.1:{free_port()}"
    assert len(predict(f"ipv4:{gone},{serve(ServedTexts())}", ["x"] * 40, balance=True, concurrency=1)) == 40


def test_a_host_name_is_resolved_by_dns_where_load_is_spread():
    assert Connection(url="triton:8001", balance=True).target() == "dns:///triton:8001"
    assert Connection(url="triton:8001").target() == "triton:8001"


@pytest.mark.parametrize("url", ["host", "host:", "host:0", "host:70000", "grpc://host:1", "host:1/path", ":8001", ""])
def test_what_is_no_address(url):
    with pytest.raises(InputError, match="is no address"):
        Client(url, "reviews")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Relay:
    """Passes a connection on to a server until it falls silent, as a network does that lost the server."""

    def __init__(self, target: str) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.silent = threading.Event()
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.silent.is_set():
                    sink.sendall(data)

    def close(self) -> None:
        for one in self._sockets:
            one.close()


@pytest.mark.parametrize("idle", [0, 0.6], ids=["while gRPC measures bandwidth", "while it does not"])
def test_keepalive_finds_a_connection_that_fell_silent(serve, idle):
    relay = Relay(serve(ServedTexts()))
    try:
        with Client(relay.url, "reviews", timeout=8, retries=0, keepalive=0.3) as client:
            assert client.predict_one("x").label == "fair"
            time.sleep(idle)
            relay.silent.set()
            begin = time.monotonic()
            with pytest.raises(ServerUnavailable):
                client.predict_one("x")
            assert time.monotonic() - begin < 5
    finally:
        relay.close()
