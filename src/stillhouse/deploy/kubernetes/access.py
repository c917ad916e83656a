"""Who asks the cluster, and how: the deployer whose secret a pod mounts, a user's kubeconfig, or the pod's own account.

A token is never put on a command line, into the environment or into a file: the kubeconfig that is written here names
the file that holds it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stillhouse.errors import InputError, Problem

__all__ = ["DEPLOYER", "Access", "cluster_access"]

DEPLOYER = Path("/var/run/secrets/stillhouse/deployer")
"""Where the deploy step's pod mounts the secret of the deployer: files `token`, `ca.crt` and `namespace`."""
_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SERVER = "server"
"""A fourth file names another cluster's API; without it, it is that of the cluster that the pod runs in."""


@dataclass(frozen=True)
class Access:
    """A way to one namespace of a cluster."""

    namespace: str
    kubeconfig: Path | None
    """None leaves it to `KUBECONFIG` and `~/.kube/config`."""
    context: str = ""

    @property
    def flags(self) -> list[str]:
        """The same for helm."""
        flags = [f"--namespace={self.namespace}"]
        flags += [f"--kubeconfig={self.kubeconfig}"] if self.kubeconfig else []
        return flags + ([f"--kube-context={self.context}"] if self.context else [])

    def client(self) -> Any:
        """A client of the Kubernetes API; the token is read anew, since it may have been renewed."""
        from kubernetes import config

        # Named here, since the client reads KUBECONFIG only once, when it is imported.
        path = str(self.kubeconfig) if self.kubeconfig else os.environ.get("KUBECONFIG") or None
        return config.new_client_from_config(config_file=path, context=self.context or None)


@contextmanager
def cluster_access(
    namespace: str = "",
    context: str = "",
    *,
    deployer: Path | None = None,
    pod: Path = _POD,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Access]:
    """Find a way to the cluster: the mounted deployer's, else the user's kubeconfig, else the pod's own account's.

    Args:
        namespace: of the release; empty takes the one that the credentials are for.
        context: of the user's kubeconfig, which is then what is used.
        deployer: folder of the mounted secret; `DEPLOYER` unless given.
        pod: folder of the pod's own service account.
        environment: instead of this process's.

    Raises:
        InputError: there is no way, or it cannot be read.
    """
    variables = os.environ if environment is None else environment
    ways = [] if context else [deployer or DEPLOYER, *([] if _has_kubeconfig(variables) else [pod])]
    mounted = next((folder for folder in ways if (folder / "token").is_file()), None)
    if mounted is None:
        yield _users(namespace, context, variables)
        return
    with tempfile.TemporaryDirectory(prefix="stillhouse-deploy-") as folder:
        path = Path(folder) / "kubeconfig"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yaml.safe_dump(_kubeconfig(mounted, variables), file)
        yield Access(namespace or _read(mounted / "namespace") or "default", path)


def _kubeconfig(mounted: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    server = _read(mounted / _SERVER) or (f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else "")
    if not server:
        what = f"the deployer's secret is mounted in {mounted}, and no cluster is in sight."
        raise InputError(Problem("KUBERNETES_SERVICE_HOST", what, f"Add a key {_SERVER!r} with the API's address."))
    cluster = {"server": server, "certificate-authority": str(mounted / "ca.crt")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "deployer", "user": {"tokenFile": str(mounted / "token")}}],
        "contexts": [{"name": "deploy", "context": {"cluster": "cluster", "user": "deployer"}}],
        "current-context": "deploy",
    }


def _has_kubeconfig(environment: Mapping[str, str]) -> bool:
    named = [Path(part) for part in environment.get("KUBECONFIG", "").split(os.pathsep) if part]
    return any(path.is_file() for path in named or [Path.home() / ".kube" / "config"])


def _users(namespace: str, context: str, environment: Mapping[str, str]) -> Access:
    """The user's own kubeconfig."""
    from kubernetes import config

    remedy = "Name a kubeconfig with KUBECONFIG, and one of its contexts with --context."
    if not _has_kubeconfig(environment):
        what = "there is no kubeconfig, and no secret of a deployer is mounted, so that no cluster can be reached."
        remedy = f"Name a kubeconfig with KUBECONFIG; or in the deploy step, mount the secret in {DEPLOYER}."
        raise InputError(Problem("deploy_target", what, remedy))
    try:
        contexts, active = config.list_kube_config_contexts(environment.get("KUBECONFIG") or None)
    except config.ConfigException as error:
        raise InputError(Problem("KUBECONFIG", f"{str(error).rstrip('.')}.", remedy)) from None
    known = {str(one["name"]): one for one in contexts}
    if context and context not in known:
        raise InputError(Problem("--context", f"{context!r} is unknown.", f"There are: {', '.join(known)}."))
    chosen = known[context] if context else active
    return Access(namespace or str(chosen["context"].get("namespace") or "default"), None, context)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
