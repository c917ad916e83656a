"""The commands of `python -m stillhouse.pipelines` that speak to Kubeflow Pipelines: submit, watch, schedule, publish."""

import argparse
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from stillhouse.errors import InputError, Problem, RegistryError, StillhouseError
from stillhouse.models.candidates import PARAMETER, parse_candidates
from stillhouse.pipelines.local import LocalSteps, fail
from stillhouse.pipelines.remote import runs, schedules
from stillhouse.pipelines.remote.connection import Api, Connection, connection
from stillhouse.pipelines.remote.plans import plan
from stillhouse.pipelines.remote.publishing import publish, read_publication
from stillhouse.pipelines.remote.uploads import Compiled, Uploaded, compile_for, pipeline_spec, upload
from stillhouse.progress import emit
from stillhouse.redaction import redacted
from stillhouse.registry import MlflowRegistry
from stillhouse.state import TRACKING_VARIABLE

__all__ = ["COMMANDS", "add_commands", "run_command"]

COMMANDS = ("submit", "watch", "schedule", "publish")


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `python -m stillhouse.pipelines`."""
    place = argparse.ArgumentParser(add_help=False)
    for option in ("endpoint", "namespace", "ca-certificate", "token-file", "cookie-file"):
        place.add_argument(f"--{option}", default="")
    what = argparse.ArgumentParser(add_help=False)
    what.add_argument("--workflow", default="")
    what.add_argument("--cluster", default="gpu")
    what.add_argument("--pipeline", default="")
    what.add_argument("--preset", default="")
    what.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE")
    what.add_argument("--experiment", default="stillhouse")
    watching = argparse.ArgumentParser(add_help=False)
    watching.add_argument("--interval", type=float, default=5.0)
    watching.add_argument("--folder", type=Path, required=True)

    submit = commands.add_parser("submit", parents=[place, what, watching])
    submit.add_argument("--run-name", default="")
    submit.add_argument("--wait", action="store_true")
    watch = commands.add_parser("watch", parents=[place, watching])
    watch.add_argument("run")

    schedule = commands.add_parser("schedule").add_subparsers(dest="action", required=True)
    create = schedule.add_parser("create", parents=[place, what])
    create.add_argument("name")
    for option in ("cron", "every", "time-zone", "cluster-time-zone", "start", "end"):
        create.add_argument(f"--{option}", default="")
    create.add_argument("--max-concurrency", type=int, default=1)
    create.add_argument("--catch-up", action="store_true")
    create.add_argument("--replace", action="store_true")
    schedule.add_parser("list", parents=[place])
    for action in ("show", "pause", "resume", "delete"):
        schedule.add_parser(action, parents=[place]).add_argument("name")

    publishing = commands.add_parser("publish", parents=[place])
    publishing.add_argument("file")
    publishing.add_argument("--owner", default="publish")
    publishing.add_argument("--cluster-time-zone", default="")
    publishing.add_argument("--prune", action="store_true")


def run_command(options: argparse.Namespace) -> int:
    """Run one of the commands.

    `submit` and `watch` report what they do as progress events. `schedule` and `publish` print one JSON document:
    `{"result": …}`, or `{"error": {"message", "problems", "exit_code"}}`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.command in ("schedule", "publish"):
        answer = _schedule if options.command == "schedule" else _publish
        try:
            body: dict[str, Any] = {"result": answer(options)}
            exit_code = 0
        except StillhouseError as error:
            problems = [vars(p) for p in error.problems] if isinstance(error, InputError) else []
            exit_code = error.exit_code
            body = {"error": {"message": str(error), "problems": problems, "exit_code": exit_code}}
        json.dump(body, sys.stdout, default=str)
        return exit_code
    begin = time.monotonic()
    try:
        if options.command == "submit":
            _submit(options)
        else:
            _watch(options)
    except StillhouseError as error:
        fail(error)
        print(error, file=sys.stderr)
        return error.exit_code
    emit("run", "finished", seconds=round(time.monotonic() - begin, 3))
    return 0


def _connection(options: argparse.Namespace, found: list[Problem]) -> Connection | None:
    try:
        return connection(
            endpoint=options.endpoint,
            namespace=options.namespace,
            ca_certificate=options.ca_certificate,
            token_file=options.token_file,
            cookie_file=options.cookie_file,
        )
    except InputError as error:
        found += error.problems
        return None


def _compile(options: argparse.Namespace, found: list[Problem], *, scheduled: bool = False) -> Compiled:
    """The pipeline and its arguments; everything wrong with them goes to `found`."""
    compiled, problems = compile_for(
        options.cluster,
        preset=options.preset,
        settings=options.settings,
        name=options.pipeline,
        workflow=options.workflow,
        scheduled=scheduled,
    )
    found += problems
    known = {problem.where for problem in problems}
    refused = runs.submission_problems(compiled.arguments, compiled.workflow)
    found += [problem for problem in refused if problem.where not in known]
    return compiled


def _submit(options: argparse.Namespace) -> None:
    found: list[Problem] = []
    place = _connection(options, found)
    compiled = _compile(options, found)
    if found or place is None:
        raise InputError(found)
    api = Api(place)
    uploaded = upload(api, compiled)
    name = options.run_name or f"{compiled.arguments['model_name']} {datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S}"
    run = runs.create_run(
        api, uploaded, name=name, experiment=options.experiment, parameters=compiled.changed
    )  # fmt: skip
    _announce(api, run, uploaded=uploaded, experiment=options.experiment, parameters=compiled.changed)
    if options.wait:
        _follow(api, run.run_id, compiled.text, compiled.arguments, options)


def _watch(options: argparse.Namespace) -> None:
    found: list[Problem] = []
    place = _connection(options, found)
    if place is None:
        raise InputError(found)
    api = Api(place)
    run = runs.get_run(api, options.run)
    reference, body = run.pipeline_version_reference, run.pipeline_spec
    if reference is not None and reference.pipeline_version_id:
        version = api.call(
            "read the pipeline's version", api.pipelines.pipeline_service_get_pipeline_version,
            reference.pipeline_id, reference.pipeline_version_id,
        )  # fmt: skip
        body = version.pipeline_spec
    if not body:
        raise InputError(Problem("RUN", f"{options.run!r} names no pipeline.", "Give another run."))
    text = json.dumps(body.get("pipeline_spec", body))  # beside a platform spec, or alone
    given = dict((run.runtime_config and run.runtime_config.parameters) or {})
    _announce(api, run, uploaded=None, experiment="", parameters=given)
    _follow(api, run.run_id, text, {**_defaults(text), **given}, options)


def _defaults(text: str) -> dict[str, Any]:
    parameters = pipeline_spec(text).root.input_definitions.parameters
    return {name: json_format.MessageToDict(spec.default_value) for name, spec in parameters.items()}


def _announce(api: Api, run: Any, *, uploaded: Uploaded | None, experiment: str, parameters: Mapping[str, Any]) -> None:
    values = {
        "kubeflow_run": run.run_id,
        "kubeflow_run_name": run.display_name,
        "kubeflow_link": runs.run_link(api, run.run_id),
        "parameters": redacted(dict(parameters)),
    }
    if uploaded is not None:
        values |= {
            "pipeline": uploaded.pipeline,
            "pipeline_version": uploaded.version,
            "uploaded": uploaded.new,
            "kubeflow_experiment": experiment,
        }
    emit("run", "result", values=values)


def _follow(api: Api, run_id: str, text: str, arguments: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Watch the run, and at its end fetch what it left in the registry, even if it failed later."""
    extras, _ = parse_candidates(arguments.get(PARAMETER) or [])
    steps = LocalSteps(pipeline_spec(text), [extra.name for extra in extras], together=True)
    failure = runs.follow(api, run_id, steps, interval=options.interval)
    _fetch(run_id, str(arguments.get("tracking_uri") or ""), options.folder / "evaluation")
    if failure:
        raise StillhouseError(failure)


def _fetch(run_id: str, tracking_uri: str, destination: Path) -> None:
    """Report the run's evaluation and model version, or why they are not at hand."""
    # The run's own parameter may be an address that only the cluster knows.
    address = os.environ.get(TRACKING_VARIABLE) or tracking_uri
    if not address:
        what = f"{TRACKING_VARIABLE} is not set here, so the run's figures are not at hand."
        emit("run", "result", values={"evaluation_absent": what})
        return
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        record = MlflowRegistry(address).run_record(run_id, destination)
    except (RegistryError, InputError) as error:
        emit("run", "result", values={"evaluation_absent": str(error)})
        return
    if record is None:
        emit("run", "result", values={"evaluation_absent": "The registry has no record of this run."})
        return
    found: dict[str, Any] = {"outcome": record.outcome, "outcome_reason": record.reason}
    if record.evaluation_dir is not None:
        found["evaluation_dir"] = str(record.evaluation_dir)
    emit("run", "result", values=found)
    if record.version:
        model = {"model_name": record.model_name, "version": record.version, "run_id": record.run_id}
        emit("register", "result", values=model)


def _schedule(options: argparse.Namespace) -> Any:
    """What one of the schedule commands answers."""
    found: list[Problem] = []
    place = _connection(options, found)
    if options.action == "create":
        return _create_schedule(options, place, found)
    if place is None:
        raise InputError(found)
    api = Api(place)
    if options.action == "list":
        return [schedules.with_last_run(api, one).document(parameters=False) for one in schedules.listed(api)]
    one = schedules.find(api, options.name)
    if options.action == "show":
        return schedules.with_last_run(api, one).document()
    if options.action == "delete":
        schedules.delete(api, one)
        return {"deleted": one.name, "id": one.id}
    change = schedules.pause if options.action == "pause" else schedules.resume
    return change(api, one).document()


def _publish(options: argparse.Namespace) -> Any:
    """What was made so, by pipeline and schedule."""
    found: list[Problem] = []
    place = _connection(options, found)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}", options.owner):
        found.append(Problem("--owner", f"{options.owner!r} is not a name.", "Use letters, digits and . _ / -."))
    publication = None
    try:
        publication = read_publication(options.file, cluster_time_zone=options.cluster_time_zone)
    except InputError as error:
        found += error.problems
    if found or place is None or publication is None:
        raise InputError(found)
    return publish(Api(place), publication, owner=options.owner, prune=options.prune)


def _create_schedule(options: argparse.Namespace, place: Connection | None, found: list[Problem]) -> Any:
    if not options.name.strip():
        found.append(Problem("NAME", "is empty.", "Give the schedule a name."))
    times, problems = plan(
        cron=options.cron,
        every=options.every,
        time_zone=options.time_zone,
        cluster_time_zone=options.cluster_time_zone,
        start=options.start,
        end=options.end,
        max_concurrency=options.max_concurrency,
        catch_up=options.catch_up,
    )
    found += problems
    compiled = _compile(options, found, scheduled=True)
    if found or place is None or times is None:
        raise InputError(found)
    api = Api(place)
    existing = [one for one in schedules.listed(api) if one.name == options.name]
    if existing and not options.replace:
        what = f"a schedule {options.name!r} exists: {existing[0].trigger}, {existing[0].state}."
        raise InputError(Problem("NAME", what, "Choose another name, or give --replace."))
    uploaded = upload(api, compiled, latest=True)
    content = schedules.Content(
        plan=times,
        name=options.name,
        pipeline=uploaded.pipeline,
        pipeline_id=uploaded.pipeline_id,
        experiment_id=runs.experiment_id(api, options.experiment),
        model_name=str(compiled.arguments["model_name"]),
        parameters=compiled.changed,
    )
    # One that was paused stays so.
    enabled = not existing or any(one.state != "paused" for one in existing)
    created = schedules.put(api, content, existing, enabled=enabled)
    return {
        **created.document(),
        "pipeline_version": uploaded.version,
        "uploaded": uploaded.new,
        "replaced": [one.id for one in existing],
    }
