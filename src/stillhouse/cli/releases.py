"""`stillhouse releases` and `stillhouse rollback`: what was served, here or on Kubernetes, and going back to it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from stillhouse.cli.options import AsJson
from stillhouse.cli.targets import Context, Namespace, Place, ReleaseName, Target

__all__ = ["releases", "rollback"]


def releases(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Name of a model; without it, all of them.")
    ] = None,
    target: Target = "",
    namespace: Namespace = "",
    context: Context = "",
    release: ReleaseName = "",
    as_json: AsJson = False,
) -> None:
    """List what was served and when, the newest first: what serves now, and what is champion.

    On Kubernetes these are the revisions of the Helm release, also those that failed, and canaries.
    """
    place = Place(target=target, namespace=namespace, context=context, release=release)
    if place.on_kubernetes:
        _list_revisions(place, model or "", as_json=as_json)
        return
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import print_json, stdout
    from stillhouse.registry import MlflowRegistry
    from stillhouse.serving.journal import read_releases
    from stillhouse.serving.server import server_status, serving_folder
    from stillhouse.state import home, tracking_uri

    require("mlflow", "train", "`stillhouse releases`")
    found = list(reversed(read_releases(serving_folder(home()), model or "")))
    status = server_status(home())
    live = status if status and status.status in ("ready", "restarting") else None
    registry = MlflowRegistry(tracking_uri())
    # A version may have been served several times: the newest entry is the one that is spoken of.
    champions = {name: registry.get_alias(name, "champion") for name in {entry.model for entry in found}}
    rows: list[dict[str, Any]] = []
    served = (live.model, live.version, live.package) if live else None
    for entry in found:
        is_served = (entry.model, entry.version, entry.package) == served
        served = None if is_served else served
        champion = entry.registered and champions.get(entry.model) == entry.version
        if champion:
            del champions[entry.model]
        rows.append({**dataclasses.asdict(entry), "served": is_served, "champion": champion})
    if as_json:
        print_json(rows)
        return
    console = stdout()
    if not rows:
        what = f"{model} was never served here." if model else "Nothing was served here yet."
        console.print(what, markup=False, soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold", show_edge=False)
    for title in ("Served since", "Model", "Version", "By", "Now"):
        table.add_column(title, justify="right" if title == "Version" else "left", no_wrap=True)
    for row in rows:
        notes = [note for note in ("served", "champion") if row[note]]
        by = row["how"] if row["registered"] else f"{row['how']} (a folder)"
        when = row["at"][:19].replace("T", " ")
        table.add_row(when, Text(row["model"]), row["version"], by, Text(", ".join(notes), style="green"))
    console.print(table)


def _list_revisions(place: Place, model: str, *, as_json: bool) -> None:
    """The revisions of a release, or of all of a namespace."""
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import print_json, stdout
    from stillhouse.deploy.kubernetes.status import release_rows
    from stillhouse.registry import MlflowRegistry
    from stillhouse.state import tracking_uri

    require("mlflow", "ops", "`stillhouse releases`")
    require("kubernetes", "ops", "`stillhouse releases`")
    registry = MlflowRegistry(tracking_uri())
    rows: list[dict[str, Any]] = []
    with place.releases(model) as found:
        for one in found:
            last = one.last()
            champion = registry.get_alias(last.model, "champion") if last and last.model else None
            rows += release_rows(one, champion)
    if as_json:
        print_json(rows)
        return
    console = stdout()
    if not rows:
        console.print("Nothing was deployed there yet.")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold", show_edge=False)
    for title in ("Revision", "Since", "Model", "Version", "By", "Status", "Test", "Now"):
        table.add_column(title, justify="right" if title in ("Revision", "Version") else "left", no_wrap=True)
    for row in rows:
        by = f"canary {row['canary']}, {row['canary_weight']}%" if row["canary"] else row["how"]
        notes = [note for note in ("served", "champion") if row[note]]
        notes += [f"canary {row['canary']}"] if row["canary"] and row["served"] else []
        when = row["at"][:19].replace("T", " ")
        table.add_row(
            str(row["revision"]),
            when,
            Text(row["model"]),
            row["version"],
            by,
            row["status"],
            row["tested"].lower(),
            Text(", ".join(notes), style="green"),
        )
    console.print(table)


def rollback(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Name of a model; without it, the one that is served."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="VERSION", help="Version to go back to.  [default: the one served before]")
    ] = "",
    target: Target = "",
    namespace: Namespace = "",
    context: Context = "",
    release: ReleaseName = "",
    as_json: AsJson = False,
) -> None:
    """Serve the release before again, with no request lost, and call it champion.

    It takes the place of the present one only when it answers as it should: on this machine it is first tried on spare
    ports; on Kubernetes its revision of the Helm release is made the newest again, and tested from inside the cluster.
    Another rollback goes one release further back; what was rolled back from is not gone back to, unless it is named.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import Spoken, print_json, stdout
    from stillhouse.cli.runs import writable_home
    from stillhouse.deploy.config import version_problems
    from stillhouse.errors import InputError
    from stillhouse.state import tracking_uri

    place = Place(target=target, namespace=namespace, context=context, release=release)
    on_kubernetes = place.on_kubernetes
    for module in ("mlflow", *(["kubernetes"] if on_kubernetes else ["tritonclient", "tokenizers", "onnxruntime"])):
        require(module, "ops" if on_kubernetes else "local", "`stillhouse rollback`")
    from stillhouse.deploy import DeployConfig, described
    from stillhouse.deploy.kubernetes.rollback import roll_back_kubernetes
    from stillhouse.deploy.rollback import roll_back
    from stillhouse.registry import MlflowRegistry

    if problems := version_problems("--to", to):
        raise InputError(problems)
    uri = tracking_uri()
    registry = MlflowRegistry(uri)
    if on_kubernetes:
        name, release = place.only_release(model or "")
        settings = {**place.settings, "release": release}
        config = DeployConfig(model_name=name, version="", tracking_uri="", deploy_target="kubernetes", **settings)
        before, endpoint = roll_back_kubernetes(config, registry=registry, to=to, step=Spoken("rollback"))
    else:
        before, endpoint = roll_back(writable_home(), registry=registry, tracking_uri=uri, model=model or "", to=to)
    if as_json:
        print_json({"before": before, **described(endpoint)})
        return
    what = f"Serving {endpoint.model} version {endpoint.version} at gRPC {endpoint.grpc_url}"
    instead = f" instead of version {before}" if before and before != endpoint.version else ""
    stdout().print(f"{what}{instead}; it is the champion now.", markup=False, soft_wrap=True)
