"""Kubernetes in miniature: an HTTP server that speaks as much of the API as the real helm binary and the client need.

It keeps objects with resource versions, lists them by label and field, streams watches, applies strategic merge
patches, and plays the controllers: a Deployment gets a ReplicaSet for each pod template and pods that become ready,
never do, or crash; a pod of `helm test` succeeds or fails. What happens is said by `behaviour` and `wrong`, by the
version of the model that a pod carries in its label. Nothing here runs a container.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from merging import merge, strategic_merge

Object = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace, name."""

KINDS = {
    ("", "v1"): {
        "configmaps": "ConfigMap",
        "events": "Event",
        "pods": "Pod",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    ("apps", "v1"): {"deployments": "Deployment", "replicasets": "ReplicaSet"},
    ("autoscaling", "v2"): {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    ("batch", "v1"): {"jobs": "Job"},
    ("gateway.networking.k8s.io", "v1"): {"grpcroutes": "GRPCRoute"},
    ("monitoring.coreos.com", "v1"): {"prometheusrules": "PrometheusRule", "servicemonitors": "ServiceMonitor"},
    ("networking.k8s.io", "v1"): {"ingresses": "Ingress", "networkpolicies": "NetworkPolicy"},
    ("policy", "v1"): {"poddisruptionbudgets": "PodDisruptionBudget"},
}
_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<part>log|status))?)?"
)
_TRACK, _VERSION = "stillhouse.dev/track", "stillhouse.dev/model-version"


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(message)


@dataclass
class Cluster:
    """The server's state, and what it is told to do."""

    url: str = ""
    token: str = ""
    """Asked of every request, where set."""
    behaviour: dict[str, str] = field(default_factory=dict)
    """What pods of a model's version do: `ready` (unless said), `pending` or `crash`."""
    wrong: set[str] = field(default_factory=set)
    """Versions that fail the tests of `helm test`."""
    log: str = ""
    """What a crashing container or a failing test writes."""
    refusals: dict[tuple[str, str], str] = field(default_factory=dict)
    """Messages of requests that are forbidden, by method and plural."""
    on_change: Callable[[str, Object], None] = lambda kind, thing: None
    """Called with each object that a client writes, after the controllers have seen it."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    objects: dict[Key, Object] = field(default_factory=dict)
    closed: bool = False
    _events: list[tuple[int, str, str, Object]] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _clock: int = 0

    # -- what tests look at ------------------------------------------------------------------------------------------

    def of(self, plural: str) -> list[Object]:
        """All objects of a kind."""
        with self._changed:
            return [thing for key, thing in sorted(self.objects.items()) if key[0] == plural]

    def serving(self) -> dict[str, str]:
        """Version by track, of the pods that are ready."""
        found = {}
        for pod in self.of("pods"):
            labels = pod["metadata"].get("labels", {})
            if (
                _TRACK in labels
                and pod["status"]["phase"] == "Running"
                and pod["status"]["conditions"][-1]["status"] == "True"
            ):
                found[labels[_TRACK]] = labels[_VERSION]
        return found

    def restart(self, name: str) -> None:
        """Have a Deployment's pods start anew, as when their node is gone."""
        with self._changed:
            key = next(key for key in self.objects if key[0] == "deployments" and key[2] == name)
            for pod in [key for key, thing in self.objects.items() if key[0] == "replicasets"]:
                self._remove(pod)
            self._store(key, self.objects[key], "MODIFIED")

    # -- the API -----------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, kind: str) -> Any:
        """Answer a request: an object, or text."""
        if method == "GET" and (found := discovery(path)) is not None:
            return found
        match = _PATH.fullmatch(path)
        group = (match["group"] or "", match["version"] or match["core"]) if match else ("", "")
        if match is None or match["plural"] not in KINDS.get(group, {}):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        plural, namespace, name = match["plural"], match["namespace"] or "", match["name"] or ""
        if message := self.refusals.get((method, plural)):
            raise Refused(403, "Forbidden", message)
        if match["part"] == "log":
            return self._log_of(name)
        with self._changed:
            given = json.loads(body) if body else {}
            if method == "GET" and not name:
                return self._list(group, plural, namespace, query)
            if method == "DELETE" and not name:
                raise Refused(405, "MethodNotAllowed", "collections are not deleted here")
            done = getattr(self, f"_{method.lower()}")((plural, namespace, name), given, kind)
        if method in ("POST", "PUT", "PATCH"):
            self.on_change(KINDS[group][plural], done)
        return done

    def _get(self, key: Key, body: Object, kind: str) -> Object:
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def _post(self, key: Key, body: Object, kind: str) -> Object:
        plural, namespace, _ = key
        name = body["metadata"]["name"]
        if (plural, namespace, name) in self.objects:
            raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
        body["metadata"] |= {
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
            "generation": 1,
        }
        return self._store((plural, namespace, name), body, "ADDED")

    def _put(self, key: Key, body: Object, kind: str) -> Object:
        held = self._get(key, {}, "")
        version = body["metadata"].get("resourceVersion")
        if version and version != held["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", f'the object "{key[2]}" has been modified')
        body["metadata"] = {
            **{k: held["metadata"][k] for k in ("uid", "creationTimestamp", "generation")},
            **body["metadata"],
        }
        return self._store(key, body, "MODIFIED")

    def _patch(self, key: Key, body: Object, kind: str) -> Object:
        held = self._get(key, {}, "")
        apply = {"application/strategic-merge-patch+json": strategic_merge, "application/merge-patch+json": merge}
        if kind not in apply:
            raise Refused(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind}")
        changed = apply[kind](held, body)
        if changed.get("spec") != held.get("spec"):
            changed["metadata"]["generation"] += 1
        return self._store(key, changed, "MODIFIED")

    def _delete(self, key: Key, body: Object, kind: str) -> Object:
        held = self._get(key, {}, "")
        self._remove(key)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": {"uid": held["metadata"]["uid"]}}

    def _list(self, group: tuple[str, str], plural: str, namespace: str, query: dict[str, str]) -> Object:
        items = [
            thing
            for key, thing in sorted(self.objects.items())
            if key[0] == plural and namespace in ("", key[1]) and selects(thing, query)
        ]
        kind, version = KINDS[group][plural], "/".join(filter(None, group))
        return {
            "kind": f"{kind}List",
            "apiVersion": version,
            "metadata": {"resourceVersion": str(self._clock)},
            "items": items,
        }

    def watched(self, plural: str, namespace: str, query: dict[str, str]) -> Iterator[Object]:
        """Events of a watch, as they come."""
        since = int(query.get("resourceVersion") or 0)
        until = time.monotonic() + float(query.get("timeoutSeconds") or 300)
        while time.monotonic() < until and not self.closed:
            with self._changed:
                fresh = [entry for entry in self._events if entry[0] > since]
                if not fresh:
                    self._changed.wait(0.1)
            for number, kind, of, thing in fresh:
                since = number
                if of == plural and namespace in ("", thing["metadata"]["namespace"]) and selects(thing, query):
                    yield {"type": kind, "object": thing}

    # -- state -------------------------------------------------------------------------------------------------------

    def _store(self, key: Key, thing: Object, event: str) -> Object:
        thing = self._defaulted(key[0], thing)
        self._clock += 1
        thing["metadata"]["resourceVersion"] = str(self._clock)
        self.objects[key] = thing
        self._events.append((self._clock, event, key[0], copy.deepcopy(thing)))
        self._changed.notify_all()
        if key[0] == "deployments":
            self._reconcile(thing)
        return self.objects[key]

    def _remove(self, key: Key) -> None:
        thing = self.objects.pop(key)
        self._clock += 1
        thing["metadata"]["resourceVersion"] = str(self._clock)
        self._events.append((self._clock, "DELETED", key[0], thing))
        self._changed.notify_all()
        owned = [
            other
            for other, entry in self.objects.items()
            if any(one["uid"] == thing["metadata"]["uid"] for one in entry["metadata"].get("ownerReferences", ()))
        ]
        for other in owned:
            if other in self.objects:
                self._remove(other)

    def _defaulted(self, plural: str, thing: Object) -> Object:
        if plural == "services":
            thing["spec"].setdefault("clusterIP", "10.0.0.1")
        elif plural == "deployments":
            spec = thing["spec"]
            spec.setdefault("replicas", 1)
            spec.setdefault("progressDeadlineSeconds", 600)
            spec.setdefault("strategy", {}).setdefault("type", "RollingUpdate")
            if spec["strategy"]["type"] == "RollingUpdate":
                spec["strategy"].setdefault("rollingUpdate", {"maxSurge": "25%", "maxUnavailable": "25%"})
        elif plural == "pods" and "status" not in thing:
            thing["status"] = self._test_status(thing)
        return thing

    # -- controllers -------------------------------------------------------------------------------------------------

    def _reconcile(self, deployment: Object) -> None:
        """Give a Deployment the ReplicaSet of its template, and pods; take the old ones away once the new are ready."""
        meta, spec = deployment["metadata"], deployment["spec"]
        template = copy.deepcopy(spec["template"])
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        name, namespace, replicas = f"{meta['name']}-{digest}", meta["namespace"], spec["replicas"]
        version = template["metadata"].get("labels", {}).get(_VERSION, "")
        behaviour = self.behaviour.get(version, "ready")
        ready = replicas if behaviour == "ready" else 0
        labels = {**template["metadata"].get("labels", {}), "pod-template-hash": digest}
        template["metadata"]["labels"] = labels
        status = {"replicas": replicas, "readyReplicas": ready, "availableReplicas": ready}
        key = ("replicasets", namespace, name)
        owned = {"namespace": namespace, "labels": labels}
        self._put_controlled(
            key,
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {**owned, "name": name, "ownerReferences": [owner("apps/v1", "Deployment", meta)]},
                "spec": {"replicas": replicas, "selector": spec["selector"], "template": template},
                "status": status,
            },
        )
        mine = self.objects[key]["metadata"]
        if behaviour == "ready":
            others = [
                other
                for other, thing in self.objects.items()
                if other[0] == "replicasets"
                and other != key
                and thing["metadata"]["ownerReferences"][0]["uid"] == meta["uid"]
            ]
            for other in others:
                self._remove(other)
        pods = [k for k, pod in self.objects.items() if k[0] == "pods" and _owned_by(pod, mine["uid"])]
        for pod in pods[replicas:]:
            self._remove(pod)
        for number in range(len(pods), replicas):
            self._put_controlled(
                ("pods", namespace, f"{name}-{number}"),
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        **owned,
                        "name": f"{name}-{number}",
                        "ownerReferences": [owner("apps/v1", "ReplicaSet", mine)],
                    },
                    "spec": template["spec"],
                    "status": pod_status(template["spec"], behaviour),
                },
            )
            if behaviour != "ready":
                self._event(namespace, "Pod", f"{name}-{number}", *_EVENTS[behaviour])
        deployment["status"] = {
            **status,
            "observedGeneration": meta["generation"],
            "updatedReplicas": replicas,
            "conditions": [{"type": "Available", "status": "True" if ready else "False"}],
        }

    def _put_controlled(self, key: Key, thing: Object) -> None:
        held = self.objects.get(key)
        created = held["metadata"] if held else {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
        thing["metadata"] = {**created, **thing["metadata"]}
        self._store(key, thing, "MODIFIED" if held else "ADDED")

    def _event(self, namespace: str, kind: str, name: str, reason: str, message: str) -> None:
        self._put_controlled(
            ("events", namespace, f"{name}.{self._clock}"),
            {
                "apiVersion": "v1",
                "kind": "Event",
                "type": "Warning",
                "metadata": {"name": f"{name}.{self._clock}", "namespace": namespace},
                "involvedObject": {"kind": kind, "name": name, "namespace": namespace},
                "reason": reason,
                "message": message,
                "count": 3,
                "lastTimestamp": now(),
            },
        )

    def _test_status(self, pod: Object) -> Object:
        """How a pod of `helm test` ends: by the version that its track serves."""
        track = "canary" if "canary" in pod["metadata"]["name"] else "stable"
        tested = self.serving().get(track, "")
        failed = not tested or tested in self.wrong
        status = pod_status(pod["spec"], "failed" if failed else "succeeded")
        return status

    def _log_of(self, name: str) -> str:
        return self.log or f"I am {name}.\n"


_EVENTS = {
    "crash": ("BackOff", "Back-off restarting failed container triton"),
    "pending": ("FailedScheduling", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
}


def pod_status(spec: Object, behaviour: str) -> Object:
    """The status of a pod that is `ready`, `pending`, `crash`ing, or has `succeeded` or `failed`."""
    states = {
        "ready": {"running": {"startedAt": now()}},
        "pending": {"waiting": {"reason": "PodInitializing"}},
        "crash": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}},
        "succeeded": {"terminated": {"exitCode": 0, "reason": "Completed"}},
        "failed": {"terminated": {"exitCode": 1, "reason": "Error"}},
    }
    phases = {
        "ready": "Running",
        "crash": "Running",
        "pending": "Pending",
        "succeeded": "Succeeded",
        "failed": "Failed",
    }
    ready = behaviour == "ready"
    containers = [
        {
            "name": one["name"],
            "image": one.get("image", ""),
            "imageID": "",
            "ready": ready,
            "restartCount": 3 if behaviour == "crash" else 0,
            "state": states[behaviour],
        }
        for one in spec["containers"]
    ]
    return {
        "phase": phases[behaviour],
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        "containerStatuses": containers,
    }


def owner(version: str, kind: str, meta: Object) -> Object:
    return {"apiVersion": version, "kind": kind, "name": meta["name"], "uid": meta["uid"], "controller": True}


def _owned_by(thing: Object, uid: str) -> bool:
    return any(one["uid"] == uid for one in thing["metadata"].get("ownerReferences", ()))


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def selects(thing: Object, query: dict[str, str]) -> bool:
    """Whether an object is one of those that label and field selectors name."""
    labels = thing["metadata"].get("labels") or {}
    for part in filter(None, re.split(r",(?![^(]*\))", query.get("labelSelector", ""))):
        if match := re.fullmatch(r"([^=!]+)==?(.*)", part):
            if labels.get(match[1]) != match[2]:
                return False
        elif match := re.fullmatch(r"([^ ]+) in \(([^)]*)\)", part):
            if labels.get(match[1]) not in match[2].split(","):
                return False
        else:
            raise Refused(400, "BadRequest", f"this selector is not understood: {part}")
    fields = {"metadata.name": thing["metadata"]["name"], "type": thing.get("type", "")}
    return all(
        fields[name] == value
        for name, _, value in (part.partition("=") for part in filter(None, query.get("fieldSelector", "").split(",")))
    )


def discovery(path: str) -> Any:
    """What the API server says of itself; None where the path is about something else."""
    if path == "/version":
        return {"major": "1", "minor": "29", "gitVersion": "v1.29.0", "platform": "linux/amd64"}
    if path == "/openapi/v2":
        return b""  # an empty document, in protobuf: of no kind is anything known, so nothing is held against it
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for group, version in KINDS:
            if group:
                entry = {"groupVersion": f"{group}/{version}", "version": version}
                groups.append({"name": group, "versions": [entry], "preferredVersion": entry})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    for (group, version), kinds in KINDS.items():
        if path == (f"/apis/{group}/{version}" if group else f"/api/{version}"):
            verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
            resources = [
                {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
                for plural, kind in kinds.items()
            ]
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{group}/{version}".lstrip("/"),
                "resources": resources,
            }
    return None


@contextmanager
def running_cluster(context: ssl.SSLContext | None = None) -> Iterator[Cluster]:
    """Run a cluster on loopback; over TLS, where a context is given."""
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            cluster.requests.append((self.command, path))
            try:
                if cluster.token and self.headers.get("Authorization") != f"Bearer {cluster.token}":
                    raise Refused(401, "Unauthorized", "Unauthorized")
                match = _PATH.fullmatch(path)
                if self.command == "GET" and query.get("watch") in ("true", "1") and match:
                    self._stream(cluster.watched(match["plural"], match["namespace"] or "", query))
                    return
                kind = (self.headers.get("Content-Type") or "").partition(";")[0]
                found, code = cluster.answer(self.command, path, query, body, kind), 200
                code = 201 if self.command == "POST" else 200
            except Refused as refused:
                code = refused.code
                found = {
                    "kind": "Status",
                    "apiVersion": "v1",
                    "status": "Failure",
                    "message": str(refused),
                    "reason": refused.reason,
                    "code": code,
                }
            self._send(code, found)

        def _send(self, code: int, found: Any) -> None:
            raw = found.encode() if isinstance(found, str) else found
            if not isinstance(raw, bytes):
                raw = json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(found, str) else "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def _stream(self, events: Iterator[Object]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            for event in events:
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that has gone

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    cluster.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield cluster
    finally:
        cluster.closed = True
        server.shutdown()
        server.server_close()
        thread.join()
