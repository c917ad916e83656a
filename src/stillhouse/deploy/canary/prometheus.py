"""Asking Prometheus, or what has its HTTP API (Thanos, Mimir, VictoriaMetrics): instant queries, and nothing else.

The token comes from the environment or from a file that it names, and is sent to the address that was given alone:
redirects are not followed, since they would carry it elsewhere.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode, urljoin, urlsplit

from stillhouse.errors import InputError, Problem, ServerUnavailable, ServingError
from stillhouse.redaction import holds_credentials, redacted

__all__ = [
    "CA_VARIABLE",
    "TOKEN_FILE_VARIABLE",
    "TOKEN_VARIABLE",
    "Prometheus",
    "Series",
    "prometheus_problems",
    "quoted",
]

TOKEN_VARIABLE = "STILLHOUSE_PROMETHEUS_TOKEN"
"""Environment variable with a bearer token."""
TOKEN_FILE_VARIABLE = "STILLHOUSE_PROMETHEUS_TOKEN_FILE"
"""Environment variable with a file of a bearer token, read anew for each question, as the kubelet replaces it."""
CA_VARIABLE = "STILLHOUSE_PROMETHEUS_CA_FILE"
"""Environment variable with a file of the certificate authorities to trust instead of the usual ones."""

_LONGEST = 64 * 1024 * 1024
"""Bytes of an answer that are read."""
_TLS_REMEDIES = {
    "Hostname mismatch": "Its certificate is for another name: give the address by that name.",
    "IP address mismatch": "Its certificate is for another name: give the address by that name.",
    "CERTIFICATE_VERIFY_FAILED": f"Its certificate is not trusted: name its authority's file in {CA_VARIABLE}.",
    "WRONG_VERSION_NUMBER": "It does not speak TLS: give the port that does, or an address with http://.",
    "RECORD_LAYER_FAILURE": "It does not speak TLS: give the port that does, or an address with http://.",
}
"""What to do, by a sign in OpenSSL's words; the first that is found."""


@dataclass(frozen=True)
class Series:
    """One series of an answer."""

    labels: Mapping[str, str]
    """The metric's name is the label `__name__`."""
    samples: Sequence[tuple[float, float]]
    """(seconds since the epoch, value), the oldest first; one sample where a value was asked for."""


def prometheus_problems(url: str, *, where: str = "prometheus_url") -> list[Problem]:
    """What is wrong with the address of a Prometheus."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = False
    if not whole or any(letter.isspace() or not letter.isprintable() for letter in url):
        remedy = "Give its base, such as http://prometheus.monitoring:9090, with a path prefix where it has one."
        return [Problem(where, f"{redacted(url)!r} is not the address of a Prometheus.", remedy)]
    if holds_credentials(url):
        remedy = f"Everyone can see it. Put a bearer token into {TOKEN_VARIABLE}, from a secret."
        return [Problem(where, "holds a user name or password.", remedy)]
    if parts.query or parts.fragment:
        return [Problem(where, f"{redacted(url)!r} has a query or fragment.", "Give the base of the API alone.")]
    return []


def quoted(text: str) -> str:
    """A text as a string of PromQL."""
    return json.dumps(text, ensure_ascii=False)


class Prometheus:
    """A Prometheus to ask.

    Args:
        url: its base, `http://HOST:PORT`, with a path prefix where it has one.
        timeout_s: how long an answer may take.
        environment: where the token and the certificate authorities are named; the process's own by default.

    Raises:
        InputError: the address or a file is at fault.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        problems = prometheus_problems(url)
        self._token, self._token_file = env.get(TOKEN_VARIABLE, "").strip(), env.get(TOKEN_FILE_VARIABLE, "")
        self._timeout_s = timeout_s
        self.url = url.rstrip("/")
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if authorities := env.get(CA_VARIABLE, ""):
            try:
                handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authorities)))
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                what = f"{authorities!r} holds no certificate authorities ({error.__class__.__name__})."
                problems.append(Problem(CA_VARIABLE, what, "Name a file in PEM form."))
        if problems:
            raise InputError(problems)
        self._opener = urllib.request.build_opener(*handlers)
        self._bearer()  # a token that cannot be read is a fault of the settings, told before anything is asked

    def __repr__(self) -> str:
        return f"Prometheus({redacted(self.url)!r})"

    def now(self) -> float:
        """Prometheus' own clock, seconds since the epoch: its samples bear its times.

        Raises:
            ServerUnavailable, ServingError: as `query`.
        """
        try:
            return float(self._ask("time()")["result"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServingError(f"{self._where} did not tell its time ({error!r}).") from None

    def query(self, expression: str, *, at: float | None = None) -> list[Series]:
        """Ask for a vector, or for a range such as `metric[5m]`, whose samples come as they were scraped.

        Args:
            expression: PromQL.
            at: time of the question, seconds since the epoch; None for now.

        Raises:
            ServerUnavailable: it does not answer, or not now: another attempt may succeed.
            ServingError: it refuses, does not understand the question, or is no Prometheus.
        """
        data = self._ask(expression, at)
        kind = data.get("resultType")
        if kind not in ("vector", "matrix"):
            raise ServingError(f"{self._where} answered {expression!r} with a {kind}, and not with series.")
        try:
            return [
                Series(row["metric"], [(float(t), float(v)) for t, v in row.get("values") or [row["value"]]])
                for row in data["result"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ServingError(f"{self._where} answered with series that cannot be read ({error!r}).") from None

    @property
    def _where(self) -> str:
        return f"Prometheus at {redacted(self.url)}"

    def _bearer(self) -> str:
        token = self._token
        if not token and self._token_file:
            try:
                token = Path(self._token_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                what = f"{self._token_file!r} cannot be read ({error.__class__.__name__})."
                raise InputError(Problem(TOKEN_FILE_VARIABLE, what, "Name a file with a bearer token.")) from None
        if any(not "!" <= letter <= "~" for letter in token):
            name = TOKEN_VARIABLE if self._token else TOKEN_FILE_VARIABLE
            raise InputError(Problem(name, "does not hold a bearer token: it has spaces or other signs in it."))
        return token

    def _ask(self, expression: str, at: float | None = None) -> dict[str, Any]:
        """The `data` of an answer."""
        # Thanos shall fail rather than leave out what a store of it does not answer; others pass over that word.
        given = {"query": expression, "timeout": f"{max(1, round(self._timeout_s))}s", "partial_response": "false"}
        if at is not None:
            given["time"] = f"{at:.3f}"
        # GET, which gateways let more people do than POST.
        request = urllib.request.Request(f"{self.url}/api/v1/query?{urlencode(given)}")
        request.add_header("Accept", "application/json")
        token = self._bearer()
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                body = response.read(_LONGEST)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, bool(token)) from None
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and TLS are OSErrors
            raise self._unreachable(error) from None
        document = _document(body)
        if document.get("status") != "success" or not isinstance(document.get("data"), dict):
            what = "did not answer as Prometheus does: a page for people, a gateway, or another path?"
            raise ServingError(f"{self._where} {what} Check prometheus_url.")
        data: dict[str, Any] = document["data"]
        return data

    def _unreachable(self, error: Exception) -> ServingError:
        reason = getattr(error, "reason", error)
        text = str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
        if isinstance(reason, ssl.SSLError):
            full = str(reason)
            remedy = next((do for sign, do in _TLS_REMEDIES.items() if sign in full), "Check the address.")
            return ServingError(f"{self._where} cannot be reached over TLS. {remedy}")
        return ServerUnavailable(f"{self._where} does not answer: {' '.join(text.split())[:200]}.")

    def _refused(self, error: urllib.error.HTTPError, with_token: bool) -> ServingError:
        try:
            said = _document(error.read(_LONGEST))
        except (OSError, http.client.HTTPException):
            said = {}
        own = " ".join(str(said.get("error") or "").split())[:500] if "errorType" in said else ""
        begin = f"{self._where} "
        if 300 <= error.code < 400:
            target = urlsplit(urljoin(self.url, error.headers.get("Location") or ""))
            shown = redacted(f"{target.scheme}://{target.netloc}{target.path}")
            return ServingError(
                f"{begin}redirects to {shown}, which is not followed. Give the final address; or, if that is a "
                f"page to log in, a token in {TOKEN_VARIABLE}."
            )
        if error.code in (401, 403):
            remedy = "The token is not accepted: is it valid, and allowed to query?"
            if not with_token:
                remedy = f"Give a bearer token in {TOKEN_VARIABLE}, or the name of its file in {TOKEN_FILE_VARIABLE}."
            return ServingError(f"{begin}does not let us ask ({error.code}). {remedy}")
        if error.code == 404:
            return ServingError(f"{begin}has no API there (404). Does its path have a prefix, such as /prometheus?")
        if error.code == 429 or error.code >= 500:
            return ServerUnavailable(f"{begin}cannot answer now ({error.code}){own and f': {own}'}.")
        return ServingError(f"{begin}refused the question ({error.code}){own and f': {own}'}.")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves redirects as the errors that they then are."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


def _document(body: bytes) -> dict[str, Any]:
    """A JSON object; an empty one where it is something else."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
