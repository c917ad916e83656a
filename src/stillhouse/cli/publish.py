"""`stillhouse publish`: what it uploads, makes and changes on Kubeflow, for people or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.kubeflow import (
    CaCertificate,
    ClusterTimeZone,
    CookieFile,
    Endpoint,
    Namespace,
    Place,
    TokenFile,
)
from stillhouse.cli.options import AsJson

__all__ = ["publish"]


def publish(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file of pipelines and schedules.")],
    owner: Annotated[str, typer.Option(metavar="NAME", help="Who publishes; noted in each schedule.")] = "publish",
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete schedules that the same owner has published, and FILE lacks.")
    ] = False,
    cluster_time_zone: ClusterTimeZone = "",
    endpoint: Endpoint = "",
    namespace: Namespace = "",
    ca_certificate: CaCertificate = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """Upload pipelines and keep schedules as a file says.

    Uploads each pipeline where its latest version has another content; makes the schedules that are missing and
    changes those that are others than FILE says. What FILE does not name is left alone. A second time, it does nothing.
    The hook of the chart `stillhouse` runs this.

    \b
    pipelines:
      - {cluster: gpu}
      - {cluster: gpu, workflow: pretrain}
    schedules:
      - name: weekly
        cluster: gpu              # or a file beside this one
        cron: "0 6 * * 1"         # or every: 6h
        time_zone: Asia/Tokyo
        parameters: {data: "s3://bucket/reviews/", model_name: verdicts}

    A schedule also takes workflow, preset, pipeline, experiment, start, end, max_concurrency and catch_up, which mean
    what the options of `stillhouse schedule create` do, and paused: true or false.
    """  # noqa: D301 - click wants the character, which keeps the lines as they are
    place = Place(
        endpoint=endpoint,
        namespace=namespace,
        ca_certificate=ca_certificate,
        token_file=token_file,
        cookie_file=cookie_file,
    )
    zone = [f"--cluster-time-zone={cluster_time_zone}"] if cluster_time_zone else []
    options = [*place.options, f"--owner={owner}", *zone, *(["--prune"] if prune else [])]
    _publish_file(file, options, as_json=as_json)


def _publish_file(file: Path, options: Sequence[str], *, as_json: bool) -> None:
    """Make pipelines and schedules on Kubeflow as a file says, and print a line for each.

    Args:
        file: lists them.
        options: where Kubeflow Pipelines is, and who publishes.
        as_json: print a JSON document.

    Raises:
        InputError: something given is wrong; nothing was done.
        StillhouseError: Kubeflow Pipelines did not answer, or refused.
    """
    from rich.text import Text

    from stillhouse.cli.output import print_json, stdout
    from stillhouse.cli.schedule import ask

    def line(new: bool, what: str, news: str) -> Text:
        return Text.assemble(("✓ ", "green") if new else ("· ", "dim"), what, f": {news}")

    answer = ask("publish", *options, "--", str(file), as_json=as_json)
    if as_json:
        print_json(answer)
        return
    console = stdout()
    for one in answer["pipelines"]:
        news = "uploaded" if one["uploaded"] else "uploaded before"
        console.print(line(one["uploaded"], f"pipeline {one['pipeline']}, version {one['pipeline_version']}", news))
    for one in answer["schedules"]:
        action = one["action"]
        news = f"{action}: {', '.join(one['changes'])}" if one["changes"] else action
        zone = f" ({one['time_zone']})" if one["time_zone"] else ""
        console.print(
            line(action != "unchanged", f"schedule {one['name']}, {one['trigger']}{zone}, {one['state']}", news)
        )
