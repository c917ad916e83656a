"""Where Kubeflow Pipelines is, who asks, and one message for each way in which it may refuse."""

import json
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp_server_api
import urllib3
from kfp_server_api.exceptions import ApiException
from urllib3.exceptions import HTTPError

from stillhouse.errors import InputError, Problem, StillhouseError

__all__ = ["Api", "Connection", "NotFoundError", "UnreachableError", "connection"]

ENDPOINT_VARIABLE = "KFP_ENDPOINT"
NAMESPACE_VARIABLE = "KFP_NAMESPACE"
TOKEN_VARIABLE = "KFP_TOKEN"
COOKIE_VARIABLE = "KFP_COOKIE"
CA_VARIABLE = "KFP_CA_CERTIFICATE"
UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"  # as kfp calls it
_TOKEN_PATH_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # as kfp calls it
_TOKEN_PATH = "/var/run/secrets/kubeflow/pipelines/token"
_IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"

_TLS_REMEDIES = {
    "Hostname mismatch": "Its certificate is for another name: give the address by that name.",
    "IP address mismatch": "Its certificate is for another name: give the address by that name.",
    "CERTIFICATE_VERIFY_FAILED": "Its certificate is not trusted: give the authority's with --ca-certificate.",
    "WRONG_VERSION_NUMBER": "It does not speak TLS: give the port that does, or an address with http://.",
    "RECORD_LAYER_FAILURE": "It does not speak TLS: give the port that does, or an address with http://.",
}
"""What to do, by a sign in OpenSSL's words; the first that is found."""
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_PAGE = 100


class UnreachableError(StillhouseError):
    """Kubeflow Pipelines did not answer, or not now: another attempt may succeed."""


class NotFoundError(StillhouseError):
    """Kubeflow Pipelines has nothing of that name or id."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where Kubeflow Pipelines is, and who asks. Neither token nor cookie is ever shown."""

    endpoint: str
    """Base URL of the API: `https://HOST/pipeline` for a whole Kubeflow."""
    namespace: str = ""
    """The profile's namespace; empty where Kubeflow Pipelines stands alone and has a single user."""
    ca_certificate: str = ""
    """File of the certificate authorities to trust; empty takes the usual ones."""
    token: str = field(default="", repr=False)
    """Bearer token."""
    token_file: str = ""
    """File of a bearer token that is replaced from time to time, as the kubelet does; read anew for each request."""
    cookie: str = field(default="", repr=False)
    """Session cookie, `NAME=VALUE`."""
    ui: str = ""
    """Base URL of the user interface, where it is not the endpoint's."""

    def link(self, path: str) -> str:
        """Address of a page of the user interface."""
        return f"{self.ui or self.endpoint}/#/{path}"


def connection(
    *,
    endpoint: str = "",
    namespace: str = "",
    ca_certificate: str = "",
    token_file: str = "",
    cookie_file: str = "",
    environment: Mapping[str, str] | None = None,
) -> Connection:
    """The connection that options and environment describe.

    Secrets come from `KFP_TOKEN`, `KFP_COOKIE`, or files. In a pod without any, it is the cluster's own Kubeflow
    Pipelines, with the service account's token that is mounted for it.

    Raises:
        InputError: with everything that is wrong or missing.
    """
    env = os.environ if environment is None else environment
    found: list[Problem] = []
    endpoint = endpoint or env.get(ENDPOINT_VARIABLE, "")
    mounted = env.get(_TOKEN_PATH_VARIABLE, "")
    if not endpoint and "KUBERNETES_SERVICE_HOST" in env:
        endpoint = _IN_CLUSTER
        mounted = mounted or (_TOKEN_PATH if Path(_TOKEN_PATH).is_file() else "")
    found += _endpoint_problems(endpoint)
    ca_certificate = ca_certificate or env.get(CA_VARIABLE, "")
    if ca_certificate:
        found += _authority_problems(ca_certificate)
    token = _secret("--token-file", token_file, TOKEN_VARIABLE, env, found)
    cookie = _secret("--cookie-file", cookie_file, COOKIE_VARIABLE, env, found)
    if cookie and not re.match(r"[!#-+\-.0-9A-Z^-z|~]+=", cookie):
        what = "does not hold a cookie." if cookie_file else f"{COOKIE_VARIABLE} does not hold a cookie."
        found.append(Problem("--cookie-file" if cookie_file else "environment", what, "Write NAME=VALUE."))
    if found:
        raise InputError(found)
    return Connection(
        endpoint=endpoint.rstrip("/"),
        namespace=namespace or env.get(NAMESPACE_VARIABLE, ""),
        ca_certificate=ca_certificate,
        token=token,
        token_file="" if token or cookie else mounted,
        cookie=cookie,
        ui=env.get(UI_VARIABLE, "").rstrip("/"),
    )


def _endpoint_problems(endpoint: str) -> list[Problem]:
    if not endpoint:
        remedy = f"Give --endpoint https://HOST/pipeline, or set {ENDPOINT_VARIABLE}."
        return [Problem("--endpoint", "no Kubeflow Pipelines is named.", remedy)]
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        valid = valid and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid:
        # What follows may be a secret, as may all of it.
        shown = re.split(r"[?#]", endpoint, maxsplit=1)[0]
        what = "is not the address of a server." if "@" in shown else f"{shown!r} is not the address of a server."
        if shown != endpoint:
            what = what if "@" in shown else f"{shown!r} is followed by a query or fragment."
        return [
            Problem("--endpoint", what, "Write https://HOST[:PORT]/PATH; for a whole Kubeflow the path is /pipeline.")
        ]
    if "@" in parts.netloc:
        remedy = f"Leave them out, and set {TOKEN_VARIABLE} or {COOKIE_VARIABLE}."
        return [Problem("--endpoint", "holds a user's name or password.", remedy)]
    return []


def _authority_problems(path: str) -> list[Problem]:
    if not Path(path).is_file():
        return [Problem("--ca-certificate", f"there is no file {path!r}.", "Give a PEM file.")]
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        return [Problem("--ca-certificate", f"{path!r} holds no certificate.", "Give a PEM file.")]
    except OSError as error:
        return [Problem("--ca-certificate", f"{path!r} cannot be read: {error.strerror}.", "Give a PEM file.")]
    return []


def _secret(option: str, path: str, variable: str, env: Mapping[str, str], found: list[Problem]) -> str:
    """A secret of one line from a file, else from the environment; its value is in no message."""
    where, text = (option, "") if path else ("environment", env.get(variable, ""))
    if path:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            found.append(Problem(option, f"{path!r} cannot be read: {reason}.", "Give a file that holds it alone."))
            return ""
    secret = text.strip()
    name = path or variable
    if path and not secret:
        found.append(Problem(where, f"{name} is empty.", "Put it there, alone on one line."))
    elif not secret.isascii() or not secret.isprintable():
        found.append(Problem(where, f"{name} holds more than one line, or letters that no header can.", "Correct it."))
        return ""
    return secret


class Api:
    """The services of Kubeflow Pipelines, for one connection."""

    def __init__(self, connection: Connection) -> None:
        configuration = kfp_server_api.Configuration(host=connection.endpoint)
        # A redirection leads to a login page. What was sent may have been done, so only connecting is tried again.
        configuration.retries = urllib3.Retry(connect=2, read=0, status=0, other=0, redirect=False, backoff_factor=0.2)
        if connection.ca_certificate:
            configuration.ssl_ca_cert = connection.ca_certificate
        if connection.token or connection.token_file:
            configuration.api_key["authorization"] = connection.token
            configuration.api_key_prefix["authorization"] = "Bearer"
        if connection.token_file:
            configuration.refresh_api_key_hook = self._read_token
        client = kfp_server_api.ApiClient(configuration, cookie=connection.cookie or None)
        self.connection = connection
        self.experiments = kfp_server_api.ExperimentServiceApi(client)
        self.pipelines = kfp_server_api.PipelineServiceApi(client)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(client)
        self.runs = kfp_server_api.RunServiceApi(client)
        self.recurring_runs = kfp_server_api.RecurringRunServiceApi(client)

    def _read_token(self, configuration: kfp_server_api.Configuration) -> None:
        path = self.connection.token_file
        try:
            configuration.api_key["authorization"] = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise StillhouseError(f"The service account's token {path} cannot be read: {error.strerror}.") from None

    @property
    def namespace(self) -> dict[str, str]:
        """The keyword argument that names the namespace; none where there is none."""
        return {"namespace": self.connection.namespace} if self.connection.namespace else {}

    def call(self, doing: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call one method of a service.

        Args:
            doing: what is attempted, as in "upload the pipeline".
            method: of one of the services.
            arguments: the method's.
            options: the method's; None is left out.

        Raises:
            UnreachableError: there was no answer, or the server cannot answer now.
            NotFoundError: there is nothing of that name or id.
            StillhouseError: the server refused.
        """
        given = {name: value for name, value in options.items() if value is not None}
        try:
            answer = method(*arguments, **given, _request_timeout=(_CONNECT_SECONDS, _READ_SECONDS))
        except (ApiException, HTTPError, AttributeError) as error:
            # The generated client stumbles over its own error when there is no body to decode.
            failure = error.__context__ if isinstance(error, AttributeError) else error
            if not isinstance(failure, (ApiException, HTTPError)):
                raise
            # Without the cause: its text repeats headers.
            raise self._explained(failure, doing) from None
        if isinstance(answer, str) or method.__self__.api_client.last_response.data.lstrip()[:1] == "<":
            raise StillhouseError(f"Could not {doing}: {self._is_no_api()}")
        return answer

    def pages(
        self, doing: str, method: Callable[..., Any], member: str, *arguments: Any, **options: Any
    ) -> Iterator[Any]:
        """All entries of a list, page by page, as `member` of each answer holds them."""
        token = None
        while True:
            answer = self.call(doing, method, *arguments, **options, page_size=_PAGE, page_token=token)
            yield from getattr(answer, member) or ()
            token = answer.next_page_token
            if not token:
                return

    def _is_no_api(self) -> str:
        return (
            f"{self.connection.endpoint} answered with a web page. Is it the address of Kubeflow Pipelines' API (for a "
            f"whole Kubeflow it ends in /pipeline), and are you logged in? Set {TOKEN_VARIABLE} or {COOKIE_VARIABLE}."
        )

    def _explained(self, error: ApiException | HTTPError, doing: str) -> StillhouseError:
        where, begin = self.connection.endpoint, f"Could not {doing}: "
        status = getattr(error, "status", 0) or 0
        if not status:
            why = self._hidden(_cause(error))
            for sign, remedy in _TLS_REMEDIES.items():
                if sign in why:
                    return StillhouseError(f"{begin}{where} cannot be reached safely. {remedy}")
            why = "it did not answer in time" if "timed out" in why.lower() else why
            remedy = "Is the address right, and reachable from here?"
            return UnreachableError(f"{begin}{where} cannot be reached ({why}). {remedy}")
        said = self._hidden(_message(error.body))
        namespace = f" in the namespace {self.connection.namespace!r}" if self.connection.namespace else ""
        if status == 401 or 300 <= status < 400:
            remedy = f"Set {TOKEN_VARIABLE} or {COOKIE_VARIABLE} (or give --token-file, --cookie-file) afresh."
            return StillhouseError(f"{begin}{where} wants you to log in ({status}). {remedy}")
        if status == 403:
            remedy = "Check --namespace, and ask its owner for the right to."
            return StillhouseError(f"{begin}{where} does not allow it{namespace} (403){said and f': {said}'}. {remedy}")
        if status == 404:
            if said.lower() in ("", "not found"):  # a gateway's words; of what it lacks, Kubeflow says which
                return StillhouseError(f"{begin}there is no Kubeflow Pipelines API at {where} (404). Check --endpoint.")
            return NotFoundError(f"{begin}{said}")
        if status in (429, 502, 503, 504):
            return UnreachableError(f"{begin}{where} cannot answer now ({status}){said and f': {said}'}.")
        return StillhouseError(f"{begin}{where} refused ({status}){said and f': {said}'}.")

    def _hidden(self, text: str) -> str:
        for secret in {self.connection.token, self.connection.cookie, self.connection.cookie.partition("=")[2]} - {""}:
            text = text.replace(secret, "***")
        return text


def _message(body: Any) -> str:
    """What an error's body says to people; empty if it is not Kubeflow Pipelines' own."""
    try:
        said = json.loads(body or "")
    except ValueError:
        return ""
    if not isinstance(said, dict):
        return ""
    # The upload service has an error message of its own kind.
    text = said.get("message") or said.get("error") or said.get("error_message") or ""
    return " ".join(str(text).split()).rstrip(".")[:500]


def _cause(error: BaseException) -> str:
    """What lies at the bottom of urllib3's chain of causes, in one line."""
    while True:
        inner = [getattr(error, "reason", None), *error.args, error.__cause__]
        below = next((one for one in inner if isinstance(one, BaseException)), None)
        if below is None:
            break
        error = below
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
