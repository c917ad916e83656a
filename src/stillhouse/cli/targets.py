"""Which place a command speaks of: this machine's server, or a release on Kubernetes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.errors import InputError, Problem

if TYPE_CHECKING:
    from stillhouse.deploy.kubernetes.release import HelmRelease

__all__ = ["TARGET_VARIABLE", "Context", "Namespace", "Place", "ReleaseName", "Target", "read_values"]

TARGET_VARIABLE = "STILLHOUSE_TARGET"
_TARGETS = ("local", "kubernetes")

Target = Annotated[
    str,
    typer.Option(
        metavar="local|kubernetes",
        help="This machine's server, or a release on Kubernetes.  [default: STILLHOUSE_TARGET; else kubernetes "
        "where an option names it, and local otherwise]",
        show_default=False,
    ),
]
Namespace = Annotated[
    str,
    typer.Option("--namespace", "-n", metavar="NAME", help="Namespace.  [default: the context's]", show_default=False),
]
Context = Annotated[
    str,
    typer.Option(metavar="NAME", help="Context of the kubeconfig.  [default: the present one]", show_default=False),
]
ReleaseName = Annotated[
    str, typer.Option(metavar="NAME", help="Helm release.  [default: made of the model's name]", show_default=False)
]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The options that say where."""

    target: str = ""
    namespace: str = ""
    context: str = ""
    release: str = ""

    @property
    def on_kubernetes(self) -> bool:
        """Whether it is a release on Kubernetes.

        Raises:
            InputError: the options contradict each other.
        """
        given = [f"--{name}" for name in ("namespace", "context", "release") if getattr(self, name)]
        target = self.target or os.environ.get(TARGET_VARIABLE, "") or ("kubernetes" if given else "local")
        where = "--target" if self.target else TARGET_VARIABLE
        if target not in _TARGETS:
            raise InputError(Problem(where, f"{target!r} is unknown.", f"Choose one of: {', '.join(_TARGETS)}."))
        if target == "local" and given:
            what = f"is local, and {', '.join(given)} can only mean Kubernetes."
            raise InputError(Problem(where, what, "Leave out one or the other."))
        return target == "kubernetes"

    @property
    def settings(self) -> dict[str, Any]:
        """The same as fields of `DeployConfig`."""
        return {"serving_namespace": self.namespace, "kube_context": self.context, "release": self.release}

    @contextmanager
    def releases(self, model: str = "") -> Iterator[list[HelmRelease]]:
        """The releases on Kubernetes: the one that is named, or a model's; else all of the namespace.

        Raises:
            InputError: there is no helm, or no way to the cluster.
        """
        from stillhouse.deploy.kubernetes.access import cluster_access
        from stillhouse.deploy.kubernetes.helm import Helm
        from stillhouse.deploy.kubernetes.settings import release_name
        from stillhouse.deploy.kubernetes.status import find_releases

        name = self.release or (release_name(model) if model else "")
        with cluster_access(self.namespace, self.context) as access:
            yield find_releases(Helm(access), access, name)

    def only_release(self, model: str = "") -> tuple[str, str]:
        """Model and release of what is meant where there is but one.

        Raises:
            InputError: there is none, or several.
        """
        with self.releases(model) as found:
            known = [(one, last) for one in found if (last := one.last()) is not None and last.model]
            if len(known) == 1:
                return known[0][1].model, known[0][0].name
        what = "nothing is deployed there." if not known else "several models are deployed there."
        remedy = (
            f"Name one: {', '.join(last.model for _, last in known)}." if known else "Use `stillhouse deploy` first."
        )
        raise InputError(Problem("MODEL", what, remedy))


def read_values(path: Path | None) -> dict[str, Any]:
    """Helm values from a YAML file; none where no file is named.

    Raises:
        InputError: it cannot be read, or holds no mapping.
    """
    if path is None:
        return {}
    import yaml

    try:
        found = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(Problem("--values", f"{str(path)!r} cannot be read: {reason}.")) from None
    except yaml.YAMLError as error:
        raise InputError(Problem("--values", f"{path} is not YAML: {' '.join(str(error).split())}")) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(Problem("--values", f"{path} is not a mapping.", "Write values as charts/triton takes them."))
    return found
