"""`stillhouse deploy` and `stillhouse status`: a registered version becomes the endpoint, and what the endpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.cli.options import AsJson
from stillhouse.cli.targets import Context, Namespace, Place, ReleaseName, Target, read_values
from stillhouse.errors import InputError, Problem, RegistryError

__all__ = ["deploy", "status"]


def deploy(
    model_uri: Annotated[
        str, typer.Argument(metavar="MODEL_URI", help="models:/NAME@challenger, or models:/NAME/3.", show_default=False)
    ],
    target: Target = "",
    namespace: Namespace = "",
    context: Context = "",
    release: ReleaseName = "",
    values: Annotated[
        Path | None,
        typer.Option(
            "--values", "-f", metavar="FILE", help="Helm values for charts/triton, in YAML.", show_default=False
        ),
    ] = None,
    canary_weight: Annotated[
        int, typer.Option(metavar="PERCENT", help="Share of the requests that it gets first, while it is judged.")
    ] = 0,
    canary_minutes: Annotated[float, typer.Option(metavar="MINUTES", help="How long a canary is watched.")] = 15,
    prometheus_url: Annotated[
        str, typer.Option(metavar="URL", help="Where a canary's metrics are asked for.", show_default=False)
    ] = "",
    timeout: Annotated[
        float, typer.Option(metavar="MINUTES", help="How long a release may take to become ready.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Deploy a registered version, smoke-test it, and call it champion.

    What served before serves on if anything goes wrong. Nothing is compared with the champion: that is the pipeline's
    business. A canary that is not good enough is withdrawn, and the exit code is 1.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import Spoken, print_json, stdout
    from stillhouse.cli.runs import writable_home
    from stillhouse.state import tracking_uri

    place = Place(target=target, namespace=namespace, context=context, release=release)
    on_kubernetes = place.on_kubernetes
    extra = "ops" if on_kubernetes else "local"
    for module in ("mlflow", "tritonclient", "tokenizers", "onnxruntime", *(["kubernetes"] if on_kubernetes else [])):
        require(module, extra, "`stillhouse deploy`")
    if not on_kubernetes and (values is not None or canary_weight):
        what = "is for Kubernetes alone."
        raise InputError(Problem("--values" if values else "--canary-weight", what, "Add --target kubernetes."))
    from stillhouse.deploy import DeployConfig
    from stillhouse.deploy.by_hand import deploy_by_hand
    from stillhouse.registry import MlflowRegistry

    uri = tracking_uri()
    registry = MlflowRegistry(uri)
    name, version = registry.resolve(model_uri)
    config = DeployConfig(
        model_name=name,
        version=version,
        tracking_uri=uri,
        deploy_target="kubernetes" if on_kubernetes else "local",
        home=writable_home(),
        serving_values=read_values(values),
        canary_weight=canary_weight,
        canary_minutes=canary_minutes,
        prometheus_url=prometheus_url,
        rollout_timeout_minutes=timeout,
        **place.settings,
    )
    done = deploy_by_hand(config, registry=registry, step=Spoken("deploy"))
    if as_json:
        print_json(done)
        return
    console = stdout()
    if canary := done.get("canary"):
        console.print(str(canary["reason"]), markup=False, soft_wrap=True)
    how = "Still serving" if done["kept"] else "Serving"
    what = f"{how} {name} version {version} at gRPC {done['url']}{_place(done)}; it is the champion now."
    console.print(what, markup=False, soft_wrap=True)


def _place(done: dict[str, Any]) -> str:
    if "release" not in done:
        return ""
    return f", release {done['release']} in {done['namespace']}, revision {done['revision']}"


def status(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Name of a model; without it, all of them.")
    ] = None,
    target: Target = "",
    namespace: Namespace = "",
    context: Context = "",
    release: ReleaseName = "",
    as_json: AsJson = False,
) -> None:
    """Show what is served and whether it answers. Exits with 1 unless it does.

    Of this machine's server, what `stillhouse serve status` shows. On Kubernetes: pods that are ready, versions, the
    canary, and how the last smoke test ended. MLflow only says what is champion; where it does not answer, the rest is
    shown all the same.
    """
    place = Place(target=target, namespace=namespace, context=context, release=release)
    if not place.on_kubernetes:
        from stillhouse.cli.serve import status as local_status

        local_status(as_json=as_json)
        return
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import print_json, stderr, stdout
    from stillhouse.deploy.kubernetes.status import release_status
    from stillhouse.registry import MlflowRegistry
    from stillhouse.state import tracking_uri

    require("mlflow", "ops", "`stillhouse status`")
    require("kubernetes", "ops", "`stillhouse status`")
    registry: MlflowRegistry | None = MlflowRegistry(tracking_uri())
    rows = []
    with place.releases(model or "") as found:
        for one in found:
            last, champion = one.last(), None
            try:
                champion = registry.get_alias(last.model, "champion") if registry and last and last.model else None
            except RegistryError as error:
                stderr().print(str(error), markup=False, soft_wrap=True)
                registry = None
            rows.append({**release_status(one, champion), **({} if registry else {"champion": None})})
    if as_json:
        print_json(rows)
    elif not rows:
        stdout().print("Nothing is deployed there.")
    else:
        for row in rows:
            _print_status(row)
    raise typer.Exit(0 if rows and all(row["answers"] for row in rows) else 1)


def _print_status(row: dict[str, Any]) -> None:
    from stillhouse.cli.output import stdout

    console = stdout()
    where = f"{row['release']} in {row['namespace']}"
    if row["status"] == "absent":
        console.print(f"There is no release {where}.", markup=False, soft_wrap=True)
        return

    def track(found: dict[str, Any] | None) -> str:
        return f"version {found['version']}, {found['ready']} of {found['wanted']} pods ready" if found else ""

    canary = track(row["canary"])
    champion = f"version {row['champion']}" if row["champion"] else "not known" if row["champion"] is None else "none"
    lines = {
        "model": row["model"],
        "release": f"{where}, revision {row['revision']}, {row['status']}",
        "stable": track(row["stable"]),
        "canary": f"{canary}, {row['canary_weight']}% of the requests" if canary else "",
        "tested": f"{row['tested'].lower()} {row['tested_at'][:19].replace('T', ' ')}" if row["tested"] else "never",
        "champion": champion,
    }
    for name, value in lines.items():
        if value:
            console.print(f"{name:<8} {value}", markup=False, soft_wrap=True)
    for line in row["trouble"]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
