"""The connection to a server: address, TLS, keepalive and round robin."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from stillhouse.errors import InputError, Problem

__all__ = ["Connection", "Tls", "seconds_problems"]

_LARGEST_MESSAGE = 2**31 - 1  # bytes; gRPC's own default for answers is 4 MB
_LONGEST = 86_400.0  # seconds
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "xds:")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")


@dataclass(frozen=True)
class Tls:
    """An encrypted connection: `Tls()` trusts the certificate authorities that gRPC carries."""

    root_certificates: str | os.PathLike[str] | None = None
    """PEM file of the certificate authorities to trust instead."""
    private_key: str | os.PathLike[str] | None = None
    """PEM file of the client's key, where the server asks who calls (mTLS); with `certificate_chain`."""
    certificate_chain: str | os.PathLike[str] | None = None
    """PEM file of the client's certificate and what leads from it to an authority."""

    def problems(self) -> list[Problem]:
        """What is wrong with the files; empty if nothing is."""
        found = []
        for name, path in self._given().items():
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                found.append(Problem(f"tls.{name}", f"{path} cannot be read ({error.strerror})."))
                continue
            kind = b"PRIVATE KEY-----" if name == "private_key" else b"-----BEGIN CERTIFICATE-----"
            if kind not in content:
                what = "private key" if name == "private_key" else "certificate"
                found.append(Problem(f"tls.{name}", f"{path} holds no {what} in PEM form."))
        if (self.private_key is None) != (self.certificate_chain is None):
            absent = "private_key" if self.private_key is None else "certificate_chain"
            found.append(Problem(f"tls.{absent}", "is absent.", "mTLS takes the private key and its certificate."))
        return found

    def credentials(self) -> Any:
        """The files as gRPC's channel credentials.

        Raises:
            InputError: something is wrong with the files.
        """
        if problems := self.problems():
            raise InputError(problems)
        return grpc.ssl_channel_credentials(**{name: Path(path).read_bytes() for name, path in self._given().items()})

    def _given(self) -> dict[str, str | os.PathLike[str]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: path for name, path in values.items() if path is not None}


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where and how to connect."""

    url: str
    """`host:port`, or a target of gRPC's own such as `ipv4:10.0.0.1:8001,10.0.0.2:8001`."""
    tls: Tls | None = None
    """None for a connection in the clear."""
    balance: bool = False
    """Spread requests over all addresses that the host name has, which a headless service gives one per replica."""
    keepalive: float = 30.0
    """Seconds after which a connection that owes an answer and is silent is tested."""

    def problems(self) -> list[Problem]:
        """What is wrong with the values; empty if nothing is."""
        found = []
        address = _ADDRESS.fullmatch(self.url)
        if not self.url.startswith(_SCHEMES) and not (address and 0 < int(address[2]) < 65536):
            remedy = "Give host:port of the gRPC endpoint, such as localhost:8001."
            found.append(Problem("url", f"{self.url!r} is no address.", remedy))
        return found + seconds_problems("keepalive", self.keepalive) + (self.tls.problems() if self.tls else [])

    def target(self) -> str:
        """The address in gRPC's form."""
        return self.url if self.url.startswith(_SCHEMES) or not self.balance else f"dns:///{self.url}"

    def options(self) -> list[tuple[str, Any]]:
        """Arguments of a gRPC channel."""
        silence = int(min(self.keepalive, 10.0) * 1000)
        options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", _LARGEST_MESSAGE),
            ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
            # Each client has connections of its own, so that one that failed is never waited for,
            ("grpc.use_local_subchannel_pool", 1),
            # and one that a restart broke is tried again soon, which retries rely on.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            # Only while an answer is due, since servers hang up on clients that ping idle connections.
            ("grpc.keepalive_time_ms", int(self.keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", silence),
            # One of the pings that gRPC measures bandwidth by may be out already, and takes the place of the test.
            ("grpc.http2.ping_timeout_ms", silence),
            ("grpc.keepalive_permit_without_calls", 0),
        ]
        if self.balance:
            options.append(("grpc.lb_policy_name", "round_robin"))
            # How soon a name may be asked for again once a connection ended: replicas come and go.
            options.append(("grpc.dns_min_time_between_resolutions_ms", 5_000))
        if self.url.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]"):
            options.append(("grpc.enable_http_proxy", 0))  # http_proxy is not meant for this machine itself
        return options

    def open(self, library: Any) -> Any:
        """A channel, which connects when it is first used.

        Args:
            library: `grpc`, or `grpc.aio` inside a running event loop.
        """
        if self.tls is None:
            return library.insecure_channel(self.target(), options=self.options())
        return library.secure_channel(self.target(), self.tls.credentials(), options=self.options())


def seconds_problems(name: str, seconds: float) -> list[Problem]:
    """What is wrong with a time that gRPC is to keep, of at most a day; empty if nothing is."""
    if 0 < seconds <= _LONGEST:
        return []
    return [Problem(name, f"{seconds:g} s will not do.", f"Give more than 0 and at most {_LONGEST:g}.")]
