"""Kubeflow Pipelines in miniature: an HTTP server that holds every request and answer to the API's schema.

It keeps experiments, pipelines, versions, runs and recurring runs. A run goes one step further each time it is read.
Rules beyond the schema are those of the API server's own validation.
"""

from __future__ import annotations

import email
import json
import re
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import kfp_server_api as api
import yaml
from google.protobuf import json_format
from kfp.components import load_component_from_text
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_schema import Mismatch, check, routes, serialised

BEGAN = datetime(2030, 1, 1, tzinfo=timezone.utc)
BASE = "/pipeline"
ROUTES = routes()
_JSON_TYPES = {
    pipeline_spec_pb2.ParameterType.STRING: str,
    pipeline_spec_pb2.ParameterType.NUMBER_INTEGER: int,
    pipeline_spec_pb2.ParameterType.NUMBER_DOUBLE: (int, float),
    pipeline_spec_pb2.ParameterType.BOOLEAN: bool,
    pipeline_spec_pb2.ParameterType.STRUCT: dict,
    pipeline_spec_pb2.ParameterType.LIST: list,
}


class Refused(Exception):
    """An answer that is not a success; `body` instead of the API server's usual one."""

    def __init__(self, status: int, message: str, body: str = "") -> None:
        self.status, self.body = status, body
        super().__init__(message)


@dataclass
class Request:
    """What arrived."""

    operation: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class StandIn:
    """The server's state, and what it is told to do."""

    url: str = ""
    token: str = ""
    """Asked of every request, where set."""
    cookie: str = ""
    namespace: str = ""
    """Asked of every request that can name one, where set: multi-user mode."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """Status and body of the next answers."""
    silence: float = 0.0
    """Seconds before each answer."""
    cached: set[str] = field(default_factory=set)
    """Tasks whose outputs are in the cache."""
    failing: dict[str, str] = field(default_factory=dict)
    """What a task says when it fails."""
    left_out: set[str] = field(default_factory=set)
    """Tasks that a condition of the pipeline leaves out."""
    steps_per_look: int = 4
    requests: list[Request] = field(default_factory=list)
    experiments: dict[str, api.V2beta1Experiment] = field(default_factory=dict)
    pipelines: dict[str, api.V2beta1Pipeline] = field(default_factory=dict)
    versions: dict[str, api.V2beta1PipelineVersion] = field(default_factory=dict)
    runs: dict[str, api.V2beta1Run] = field(default_factory=dict)
    recurring: dict[str, api.V2beta1RecurringRun] = field(default_factory=dict)
    _looks: dict[str, int] = field(default_factory=dict)
    _specs: dict[str, pipeline_spec_pb2.PipelineSpec] = field(default_factory=dict)
    _clock: int = 0

    def operations(self) -> list[str]:
        """Names of the operations that were called, in order."""
        return [request.operation for request in self.requests]

    def now(self) -> datetime:
        """A later time with each call."""
        self._clock += 1
        return BEGAN + timedelta(seconds=self._clock)

    # -- experiments -----------------------------------------------------------------------------------------------

    def experiment_service_create_experiment(self, body: api.V2beta1Experiment) -> Any:
        if any(
            e.display_name == body.display_name and e.namespace == body.namespace for e in self.experiments.values()
        ):
            raise Refused(409, "The experiment already exists")
        body.experiment_id, body.created_at = str(uuid.uuid4()), self.now()
        body.storage_state = "AVAILABLE"
        self.experiments[body.experiment_id] = body
        return body

    def experiment_service_list_experiments(self, **query: str) -> Any:
        page, token = _page(self._in_namespace(self.experiments.values(), query), query)
        return api.V2beta1ListExperimentsResponse(experiments=page, total_size=len(page), next_page_token=token)

    # -- pipelines -------------------------------------------------------------------------------------------------

    def pipeline_service_list_pipelines(self, **query: str) -> Any:
        page, token = _page(self._in_namespace(self.pipelines.values(), query), query)
        return api.V2beta1ListPipelinesResponse(pipelines=page, total_size=len(page), next_page_token=token)

    def pipeline_service_create_pipeline(self, body: api.V2beta1Pipeline) -> Any:
        if any(pipeline.name == body.name for pipeline in self.pipelines.values()):
            raise Refused(409, "The pipeline already exists")
        body.pipeline_id, body.created_at = str(uuid.uuid4()), self.now()
        self.pipelines[body.pipeline_id] = body
        return body

    def pipeline_service_list_pipeline_versions(self, pipeline_id: str, **query: str) -> Any:
        self._known(self.pipelines, pipeline_id, "Pipeline")
        entries = [version for version in self.versions.values() if version.pipeline_id == pipeline_id]
        page, token = _page(entries, query)
        return api.V2beta1ListPipelineVersionsResponse(
            pipeline_versions=page, total_size=len(page), next_page_token=token
        )

    def pipeline_service_get_pipeline_version(self, pipeline_id: str, pipeline_version_id: str) -> Any:
        self._known(self.pipelines, pipeline_id, "Pipeline")
        return self._known(self.versions, pipeline_version_id, "PipelineVersion")

    def upload_pipeline_version(self, uploadfile: bytes, **query: str) -> Any:
        self._known(self.pipelines, query["pipelineid"], "Pipeline")
        if any(v.name == query["name"] and v.pipeline_id == query["pipelineid"] for v in self.versions.values()):
            raise Refused(409, "The pipeline version already exists")
        text = uploadfile.decode()
        load_component_from_text(text)
        spec, *platform = yaml.load_all(text, Loader=yaml.CSafeLoader)
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        for part in platform:
            json_format.ParseDict(part, pipeline_spec_pb2.PlatformSpec())
        version = api.V2beta1PipelineVersion(
            pipeline_id=query["pipelineid"],
            pipeline_version_id=str(uuid.uuid4()),
            name=query["name"],
            display_name=query.get("display_name") or query["name"],
            description=query.get("description"),
            created_at=self.now(),
            pipeline_spec={"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec,
        )
        self.versions[version.pipeline_version_id] = version
        return version

    # -- runs ------------------------------------------------------------------------------------------------------

    def run_service_create_run(self, body: api.V2beta1Run) -> Any:
        self._check_namespace(self._known(self.experiments, body.experiment_id, "Experiment").namespace)
        if not body.display_name:
            raise Refused(400, "The run name is empty. Please specify a valid name")
        version = self._version(body.pipeline_version_reference)
        self._check_parameters(version, body.runtime_config)
        body.run_id, body.created_at, body.state = str(uuid.uuid4()), self.now(), "PENDING"
        self.runs[body.run_id] = body
        return body

    def run_service_get_run(self, run_id: str, **query: str) -> Any:
        run = self._known(self.runs, run_id, "Run")
        self._progress(run)
        return run

    def run_service_list_runs(self, **query: str) -> Any:
        self._check_namespace(query.get("namespace"))
        wanted = query.get("experiment_id")
        page, token = _page([r for r in self.runs.values() if wanted in (None, r.experiment_id)], query)
        return api.V2beta1ListRunsResponse(runs=page, total_size=len(page), next_page_token=token)

    # -- recurring runs --------------------------------------------------------------------------------------------

    def recurring_run_service_create_recurring_run(self, body: api.V2beta1RecurringRun) -> Any:
        self._check_namespace(body.namespace)
        self._known(self.experiments, body.experiment_id, "Experiment")
        if not body.display_name:
            raise Refused(400, "Recurring run's name cannot be empty")
        if not 1 <= int(body.max_concurrency or 0) <= 10:
            raise Refused(400, "The max concurrency of the recurring run is out of range. Support 1-10")
        cron, periodic = body.trigger.cron_schedule, body.trigger.periodic_schedule
        if (cron is None) == (periodic is None):
            raise Refused(400, "Exactly one trigger is needed")
        if cron and not re.fullmatch(r"(\S+ ){4,5}\S+", cron.cron or ""):
            raise Refused(400, f"Schedule cron is not a supported format. Expected 5 to 6 fields: {cron.cron}")
        if cron and not all(re.fullmatch(r"[-0-9*/,?A-Za-z]+", part) for part in cron.cron.split(" ")):
            raise Refused(400, "Schedule cron is not a supported format. Failed to parse int")
        if periodic and int(periodic.interval_second) < 1:
            raise Refused(400, "Found invalid period schedule interval")
        self._check_parameters(self._version(body.pipeline_version_reference), body.runtime_config)
        body.recurring_run_id, body.created_at = str(uuid.uuid4()), datetime.now(timezone.utc)
        body.status = "ENABLED" if body.mode == "ENABLE" else "DISABLED"
        self.recurring[body.recurring_run_id] = body
        return body

    def recurring_run_service_list_recurring_runs(self, **query: str) -> Any:
        page, token = _page(self._in_namespace(self.recurring.values(), query), query)
        return api.V2beta1ListRecurringRunsResponse(recurring_runs=page, total_size=len(page), next_page_token=token)

    def recurring_run_service_get_recurring_run(self, recurring_run_id: str) -> Any:
        return self._known(self.recurring, recurring_run_id, "Job")

    def recurring_run_service_disable_recurring_run(self, recurring_run_id: str) -> Any:
        self._known(self.recurring, recurring_run_id, "Job").status = "DISABLED"
        return {}

    def recurring_run_service_enable_recurring_run(self, recurring_run_id: str) -> Any:
        self._known(self.recurring, recurring_run_id, "Job").status = "ENABLED"
        return {}

    def recurring_run_service_delete_recurring_run(self, recurring_run_id: str, **query: str) -> Any:
        self._known(self.recurring, recurring_run_id, "Job")
        del self.recurring[recurring_run_id]
        return {}

    def tick(self, recurring_run_id: str) -> api.V2beta1Run:
        """Start the run that a schedule is due for, as the controller does."""
        schedule = self.recurring[recurring_run_id]
        version = self._version(schedule.pipeline_version_reference)
        run = api.V2beta1Run(
            run_id=str(uuid.uuid4()),
            display_name=f"{schedule.display_name}-1",
            experiment_id=schedule.experiment_id,
            recurring_run_id=recurring_run_id,
            pipeline_version_reference=api.V2beta1PipelineVersionReference(
                pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
            ),
            runtime_config=schedule.runtime_config,
            created_at=datetime.now(timezone.utc),
            state="RUNNING",
        )
        self.runs[run.run_id] = run
        return run

    # -- rules -----------------------------------------------------------------------------------------------------

    def _known(self, entries: dict[str, Any], key: str | None, kind: str) -> Any:
        if key not in entries:
            raise Refused(404, f"{kind} {key} not found")
        return entries[key]

    def _check_namespace(self, namespace: str | None) -> None:
        if self.namespace and not namespace:
            raise Refused(400, "Namespace is empty in multi-user mode")
        if self.namespace and namespace != self.namespace:
            raise Refused(403, f"User 'someone' is not authorized in namespace {namespace}")

    def _in_namespace(self, entries: Any, query: dict[str, str]) -> list[Any]:
        self._check_namespace(query.get("namespace"))
        return [entry for entry in entries if not query.get("namespace") or entry.namespace == query["namespace"]]

    def _version(self, reference: Any) -> api.V2beta1PipelineVersion:
        if reference is None or not reference.pipeline_id:
            raise Refused(400, "Must specify a pipeline")
        self._known(self.pipelines, reference.pipeline_id, "Pipeline")
        if reference.pipeline_version_id:
            return self._known(self.versions, reference.pipeline_version_id, "PipelineVersion")
        own = [v for v in self.versions.values() if v.pipeline_id == reference.pipeline_id]
        if not own:
            raise Refused(404, "The pipeline has no version")
        return max(own, key=lambda version: version.created_at)

    def spec_of(self, version: api.V2beta1PipelineVersion) -> pipeline_spec_pb2.PipelineSpec:
        if version.pipeline_version_id not in self._specs:
            body = version.pipeline_spec.get("pipeline_spec", version.pipeline_spec)
            self._specs[version.pipeline_version_id] = json_format.ParseDict(body, pipeline_spec_pb2.PipelineSpec())
        return self._specs[version.pipeline_version_id]

    def _check_parameters(self, version: api.V2beta1PipelineVersion, config: Any) -> None:
        given = dict((config and config.parameters) or {})
        known = self.spec_of(version).root.input_definitions.parameters
        for name, value in given.items():
            if name not in known:
                raise Refused(400, f"unknown parameter {name}")
            if not isinstance(value, _JSON_TYPES[known[name].parameter_type]):
                raise Refused(400, f"parameter {name} is of the wrong type: {value!r}")
        for name, spec in known.items():
            if name not in given and not spec.is_optional and not spec.HasField("default_value"):
                raise Refused(400, f"parameter {name} is missing")

    def _progress(self, run: api.V2beta1Run) -> None:
        """Bring a run a few steps on, and list its workflow's nodes as the API server does."""
        look = self._looks[run.run_id] = self._looks.get(run.run_id, -1) + 1
        version = self._version(run.pipeline_version_reference)
        spec = self.spec_of(version)
        extras = (run.runtime_config.parameters or {}).get("extra_candidates")
        other = "== 'no'" if extras else "== 'yes'"
        leaves = _leaves(spec, spec.root.dag, f"-extras'] {other}")
        names = [name for name in leaves if name not in self.left_out]
        reached = look * self.steps_per_look
        failed = next((i for i, name in enumerate(names) if name in self.failing and i < reached), None)
        details = [
            self._task(run, "root", "RUNNING", 0),
            self._task(run, "root-driver", "SUCCEEDED", 0),
            self._task(run, "exit-handler-1", "RUNNING", 0),
            self._task(run, "exit-handler-1-driver", "SUCCEEDED", 0),
        ]
        for index, name in enumerate(names[: reached + 1]):
            if failed is not None and failed < index < len(names) - 1:
                continue  # what depends on it never begins; the exit handler does
            state = "FAILED" if index == failed else "SUCCEEDED" if index < reached else "RUNNING"
            executor = self._task(run, "executor", "SKIPPED" if name in self.cached else state, index)
            step = self._task(run, name, state, index, self.failing.get(name, "") if index == failed else "")
            step.child_tasks = [api.PipelineTaskDetailChildTask(pod_name=executor.pod_name)]
            details += [self._task(run, f"{name}-driver", "SUCCEEDED", index), step, executor]
        run.run_details = api.V2beta1RunDetails(task_details=details)
        if reached < len(names):
            run.state = "RUNNING"
        elif run.state in ("PENDING", "RUNNING"):
            run.state, run.finished_at = "SUCCEEDED" if failed is None else "FAILED", self.now()
            if failed is not None:
                run.error = api.GoogleRpcStatus(code=13, message="the workflow failed")

    def _task(self, run: api.V2beta1Run, name: str, state: str, index: int, message: str = "") -> Any:
        task = api.V2beta1PipelineTaskDetail(
            run_id=run.run_id,
            task_id=str(uuid.uuid4()),
            display_name=name,
            state=state,
            start_time=BEGAN + timedelta(minutes=index),
            # Zero is how the API server writes what has not come.
            end_time=BEGAN + timedelta(minutes=index, seconds=30)
            if state != "RUNNING"
            else datetime(1970, 1, 1, tzinfo=timezone.utc),
            pod_name=f"wf-{name}-{index}",
        )
        if message:
            error = api.GoogleRpcStatus(code=13, message=message)
            task.state_history = [api.V2beta1RuntimeStatus(update_time=BEGAN, state="FAILED", error=error)]
        return task


def _leaves(spec: pipeline_spec_pb2.PipelineSpec, dag: pipeline_spec_pb2.DagSpec, other: str) -> Iterator[str]:
    """Names of the tasks that run something, each after those that it depends on; none under a condition so."""
    waiting, done = dict(dag.tasks.items()), set()
    while waiting:
        for name in sorted(name for name, task in waiting.items() if set(task.dependent_tasks) <= done):
            task = waiting.pop(name)
            component = spec.components[task.component_ref.name]
            done.add(name)
            if task.trigger_policy.condition.endswith(other):
                continue
            if component.HasField("dag"):
                yield from _leaves(spec, component.dag, other)
            else:
                yield name


def _page(entries: Any, query: dict[str, str]) -> tuple[list[Any], str | None]:
    """Two entries at a time, so that every list takes pages; filtered and sorted as asked."""
    chosen = list(entries)
    if query.get("filter"):
        body = json.loads(unquote(query["filter"]))
        check(body, "V2beta1Filter", "filter")
        for predicate in body["predicates"]:
            assert predicate["operation"] == "EQUALS", predicate
            chosen = [entry for entry in chosen if getattr(entry, predicate["key"]) == predicate["string_value"]]
    if query.get("sort_by"):
        key, _, order = query["sort_by"].partition(" ")
        chosen.sort(key=lambda entry: getattr(entry, key), reverse=order == "desc")
    start = int(query.get("page_token") or 0)
    size = min(2, int(query.get("page_size") or 2)) if start == 0 else 2
    end = start + size
    return chosen[start:end], str(end) if end < len(chosen) else None


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        world = self.server.world
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        time.sleep(world.silence)
        try:
            status, body = 200, json.dumps(self._operate(content))
        except Refused as refusal:
            code = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6}.get(refusal.status, 13)
            said = json.dumps({"code": code, "message": str(refusal), "details": []})
            status, body = refusal.status, refusal.body or said
        except Mismatch as mismatch:
            status, body = 400, json.dumps({"code": 3, "message": f"proto: {mismatch}", "details": []})
        kind = "text/html" if body.startswith("<") else "application/json"
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"{world.url}/login")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = do_DELETE = do_PATCH = _answer

    def _operate(self, content: bytes) -> Any:
        world, parts = self.server.world, urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        path = parts.path.removeprefix(BASE)
        found = [(r, m) for r in ROUTES if r.method == self.command and (m := r.pattern.fullmatch(path))]
        if not found or not parts.path.startswith(BASE):
            raise Refused(404, "Not Found")
        route, match = found[0]
        headers = {key.lower(): value for key, value in self.headers.items()}
        body: Any = None
        if content and not route.uploads:
            body = json.loads(content)
        world.requests.append(Request(route.name, query, headers, body))
        if world.faults:
            raise Refused(world.faults[0][0], "", world.faults.pop(0)[1])
        if world.token and headers.get("authorization") != f"Bearer {world.token}":
            raise Refused(401, "Request header error: there is no user identity header")
        if world.cookie and headers.get("cookie") != world.cookie:
            raise Refused(401, "Request header error: there is no user identity header")
        for key, value in query.items():
            if key not in route.query:
                raise Mismatch(f"query: {key!r} is unknown to {route.name}")
            check(int(value) if route.query[key] == "int" else value, route.query[key], f"query.{key}")
        arguments: list[Any] = []
        if route.body:
            if body is None:
                raise Mismatch("there is no body")
            check(body, route.body)
            arguments = [_model(body, route.body)]
        elif route.uploads:
            arguments = [_uploaded(self.headers["Content-Type"], content)]
        answer = serialised(getattr(world, route.name)(*arguments, **match.groupdict(), **query))
        check(answer, route.answer, "answer")
        return answer


def _model(body: Any, kind: str) -> Any:
    class _Response:
        data = json.dumps(body)

    return api.ApiClient().deserialize(_Response, kind)


def _uploaded(content_type: str, content: bytes) -> bytes:
    message = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + content)
    part = next(part for part in message.walk() if part.get_param("name", header="content-disposition") == "uploadfile")
    return part.get_payload(decode=True)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    world: StandIn

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # not that the client has gone


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[StandIn]:
    """A server on loopback, with TLS if it is given a context."""
    server = _Server(("127.0.0.1", 0), _Handler)
    scheme = "http"
    if context is not None:
        server.socket, scheme = context.wrap_socket(server.socket, server_side=True), "https"
    server.world = StandIn(url=f"{scheme}://localhost:{server.server_address[1]}{BASE}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.world
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
