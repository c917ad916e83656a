"""The commands that speak to Kubeflow Pipelines, as they are typed: `submit` and `schedule`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.options import AsJson, Workflow

__all__ = [
    "CaCertificate",
    "ClusterTimeZone",
    "CookieFile",
    "Endpoint",
    "Namespace",
    "Place",
    "TokenFile",
    "Work",
    "schedule",
    "submit",
]

Endpoint = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="Kubeflow Pipelines, such as https://HOST/pipeline.  [default: KFP_ENDPOINT]",
        show_default=False,
    ),
]
Namespace = Annotated[
    str,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAME",
        help="Namespace of your Kubeflow profile.  [default: KFP_NAMESPACE]",
        show_default=False,
    ),
]
CaCertificate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Certificate authorities to trust.  [default: KFP_CA_CERTIFICATE, else the usual]",
        show_default=False,
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File that holds a bearer token, where KFP_TOKEN does not.")
]
CookieFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File that holds a session cookie, NAME=VALUE, where KFP_COOKIE does not."),
]
Cluster = Annotated[
    str,
    typer.Option("--cluster", "-c", metavar="NAME|FILE", help="`gpu`, `cpu`, or a file that describes your cluster."),
]
Pipeline = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Name of the pipeline on Kubeflow.  [default: one for each cluster's file]",
        show_default=False,
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME|FILE",
        help="Preset that the parameters start from, or a YAML file of parameters.  [default: the cluster's]",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Give one parameter another value. May be given many times."),
]
Experiment = Annotated[str, typer.Option(metavar="NAME", help="Kubeflow's experiment, created if need be.")]
ClusterTimeZone = Annotated[
    str,
    typer.Option(
        metavar="ZONE",
        envvar="KFP_TIME_ZONE",
        show_envvar=False,
        help="CRON_SCHEDULE_TIMEZONE of Kubeflow's controller.  [default: KFP_TIME_ZONE, else UTC]",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the schedule.")]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The options that say where Kubeflow Pipelines is, and who asks."""

    endpoint: str = ""
    namespace: str = ""
    ca_certificate: Path | None = None
    token_file: Path | None = None
    cookie_file: Path | None = None

    @property
    def options(self) -> list[str]:
        """The same for the pipelines' own command."""
        return _options({name: str(value) for name, value in vars(self).items() if value})


@dataclass(frozen=True, kw_only=True)
class Work:
    """The options that say what is run."""

    workflow: str
    cluster: str
    pipeline: str
    preset: str
    settings: tuple[str, ...]
    experiment: str

    @property
    def options(self) -> list[str]:
        """The same for the pipelines' own command."""
        values = {name: str(value) for name, value in vars(self).items() if value and name != "settings"}
        return [*_options(values), *(part for setting in self.settings for part in ("--set", setting))]


def _options(values: dict[str, str]) -> list[str]:
    # In one word each, as a value may begin with a hyphen.
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def submit(
    context: typer.Context,
    endpoint: Endpoint = "",
    namespace: Namespace = "",
    workflow: Workflow = "",
    cluster: Cluster = "gpu",
    preset: Preset = "",
    settings: Settings = None,
    experiment: Experiment = "stillhouse",
    run_name: Annotated[
        str,
        typer.Option(metavar="NAME", help="Name of the run.  [default: the model's and the time]", show_default=False),
    ] = "",
    pipeline: Pipeline = "",
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Watch the run to its end.")] = False,
    watch: Annotated[
        str, typer.Option(metavar="RUN", help="Submit nothing; watch the run with this id to its end.")
    ] = "",
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.05, help="Between two looks at a run that is watched.")
    ] = 5.0,
    ca_certificate: CaCertificate = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline on Kubeflow.

    Uploads the pipeline, or a new version of it where its content has changed, and starts a run. With --wait, shows the
    steps as they go, and at the end what `stillhouse run` shows, read from MLflow; Ctrl-C stops watching, and the run
    goes on.

    Secrets come from KFP_TOKEN or KFP_COOKIE, or from files. In a pod of the cluster, its service account is used.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.submit import submit_pipeline, watch_run

    require("kfp", "train", "`stillhouse submit`")
    place = Place(
        endpoint=endpoint,
        namespace=namespace,
        ca_certificate=ca_certificate,
        token_file=token_file,
        cookie_file=cookie_file,
    )
    if watch:
        _refuse_beside_watch(context)
        raise typer.Exit(watch_run(watch, place, interval=interval, as_json=as_json))
    work = Work(
        workflow=workflow,
        cluster=cluster,
        pipeline=pipeline,
        preset=preset,
        settings=tuple(settings or ()),
        experiment=experiment,
    )
    raise typer.Exit(submit_pipeline(place, work, run_name, wait=wait, interval=interval, as_json=as_json))


def _refuse_beside_watch(context: typer.Context) -> None:
    """A run that is watched was submitted before, so nothing can be said of it any more.

    Raises:
        InputError: options say something.
    """
    from stillhouse.errors import InputError, Problem

    options = {"settings": "--set"}
    given = [
        options.get(name, f"--{name.replace('_', '-')}")
        for name in ("workflow", "cluster", "preset", "settings", "experiment", "run_name", "pipeline", "wait")
        if str(getattr(context.get_parameter_source(name), "name", "DEFAULT")) != "DEFAULT"
    ]
    if given:
        what = f"is given beside --watch, which submits nothing: {', '.join(given)}."
        raise InputError(Problem(given[0] if len(given) == 1 else "options", what, "Leave out one or the other."))


schedule = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Run a pipeline on Kubeflow again and again, always in its latest version.",
)


@schedule.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule.")],
    cron: Annotated[
        str, typer.Option(metavar="FIELDS", help="Cron expression of five fields, or six with the second first.")
    ] = "",
    every: Annotated[str, typer.Option(metavar="INTERVAL", help="Instead of --cron: 30m, 6h, 1d or 2w.")] = "",
    time_zone: Annotated[
        str,
        typer.Option(
            metavar="ZONE",
            help="IANA name of the zone that times are given in.  [default: the cluster's]",
            show_default=False,
        ),
    ] = "",
    cluster_time_zone: ClusterTimeZone = "",
    start: Annotated[str, typer.Option(metavar="TIME", help="ISO 8601 date or time of the beginning.")] = "",
    end: Annotated[str, typer.Option(metavar="TIME", help="ISO 8601 date or time of the end.")] = "",
    max_concurrency: Annotated[int, typer.Option(metavar="N", help="Runs of this schedule at once, 1 to 10.")] = 1,
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="Make up for missed times, one by one, not for the last one only.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a schedule of that name, once the new one is there.")
    ] = False,
    endpoint: Endpoint = "",
    namespace: Namespace = "",
    workflow: Workflow = "",
    cluster: Cluster = "gpu",
    preset: Preset = "",
    settings: Settings = None,
    experiment: Experiment = "stillhouse",
    pipeline: Pipeline = "",
    ca_certificate: CaCertificate = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a schedule.

    Runs of the main pipeline stop early where the data has not changed since the champion was trained, unless --set
    skip_unchanged=false is given. With deploy_target=none, nothing makes a version the champion but you: set the alias
    `champion` in MLflow, or runs neither compare nor stop early.

    Kubeflow reads cron expressions in one time zone for the whole cluster; times of another zone are converted where
    that is exact, and refused where it is not, as across a change of daylight saving time.
    """
    from stillhouse.cli.schedule import change_schedule

    place = Place(
        endpoint=endpoint,
        namespace=namespace,
        ca_certificate=ca_certificate,
        token_file=token_file,
        cookie_file=cookie_file,
    )
    work = Work(
        workflow=workflow,
        cluster=cluster,
        pipeline=pipeline,
        preset=preset,
        settings=tuple(settings or ()),
        experiment=experiment,
    )
    times = _options(
        {
            key: value
            for key, value in {
                "cron": cron,
                "every": every,
                "time-zone": time_zone,
                "cluster-time-zone": cluster_time_zone,
                "start": start,
                "end": end,
                "max-concurrency": str(max_concurrency),
            }.items()
            if value
        }
    )
    flags = [flag for flag, given in (("--catch-up", catch_up), ("--replace", replace)) if given]
    options = [*place.options, *work.options, *times, *flags]
    change_schedule("create", name, options, as_json=as_json)


@schedule.command("list")
def list_(
    endpoint: Endpoint = "",
    namespace: Namespace = "",
    ca_certificate: CaCertificate = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """List the schedules that Stillhouse made."""
    from stillhouse.cli.schedule import list_schedules

    place = Place(
        endpoint=endpoint,
        namespace=namespace,
        ca_certificate=ca_certificate,
        token_file=token_file,
        cookie_file=cookie_file,
    )
    list_schedules(place.options, as_json=as_json)


def _add(action: str, summary: str) -> None:
    """Add a command that takes a schedule's name and no more."""

    def command(
        name: Name,
        endpoint: Endpoint = "",
        namespace: Namespace = "",
        ca_certificate: CaCertificate = None,
        token_file: TokenFile = None,
        cookie_file: CookieFile = None,
        as_json: AsJson = False,
    ) -> None:
        from stillhouse.cli.schedule import change_schedule

        place = Place(
            endpoint=endpoint,
            namespace=namespace,
            ca_certificate=ca_certificate,
            token_file=token_file,
            cookie_file=cookie_file,
        )
        change_schedule(action, name, place.options, as_json=as_json)

    schedule.command(action, help=summary)(command)


_add("show", "Show a schedule, with the parameters of its runs.")
_add("pause", "Keep a schedule from starting runs; those that go on are left alone.")
_add("resume", "Let a paused schedule start runs again.")
_add("delete", "Remove a schedule; the runs that it has started stay.")
