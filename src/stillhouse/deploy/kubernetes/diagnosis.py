"""Why a release does not come up, in the cluster's own words: its pods' states, their events and their last lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stillhouse.deploy.kubernetes.access import Access
from stillhouse.errors import ServingError
from stillhouse.kubernetes_api import api_reason
from stillhouse.redaction import redacted

__all__ = ["api_errors", "diagnosis"]

_TIMEOUT_S = 30
_PODS = 3
_EVENTS = 8
_LINES = 12
_LONGEST = 400
_INSTANCE = "app.kubernetes.io/instance"


def diagnosis(access: Access, release: str) -> list[str]:
    """Lines about the pods of a release that are not ready, the worst first; what can be had of them, without secrets.

    Args:
        access: the way to the cluster.
        release: the Helm release.
    """
    from kubernetes.client import ApiException, CoreV1Api
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    lines: list[str] = []
    try:
        core = CoreV1Api(access.client())
        found = core.list_namespaced_pod(
            access.namespace, label_selector=f"{_INSTANCE}={release}", _request_timeout=_TIMEOUT_S
        ).items
        ailing = sorted((pod for pod in found if not _is_well(pod)), key=_rank)
        for pod in ailing[:_PODS]:
            lines += _states(pod)
            lines += _last_lines(core, pod)
        if len(ailing) > _PODS:
            lines.append(f"and {len(ailing) - _PODS} more pods that are not ready")
        if not found:
            lines.append(f"there are no pods of {release} in {access.namespace}")
        lines += _events(core, access.namespace, release, {pod.metadata.name for pod in found})
    except (ApiException, HTTPError, ConfigException) as error:
        lines.append(f"(more cannot be read of the cluster: {api_reason(error)})")
    return [redacted(line)[:_LONGEST] for line in lines]


def _is_well(pod: Any) -> bool:
    if pod.status.phase == "Succeeded":
        return True
    return any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())


def _rank(pod: Any) -> tuple[int, float]:
    """Pods that failed or crash first, and of these the newest: they are of the new version."""
    crashes = pod.status.phase == "Failed" or any(one.restart_count for one in _statuses(pod))
    created = pod.metadata.creation_timestamp
    return (0 if crashes else 1, -created.timestamp() if created else 0.0)


def _statuses(pod: Any) -> list[Any]:
    return [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]


def _states(pod: Any) -> Iterator[str]:
    name, labels = pod.metadata.name, pod.metadata.labels or {}
    notes = [labels[key] for key in ("stillhouse.dev/track",) if key in labels]
    if version := labels.get("stillhouse.dev/model-version"):
        notes.append(f"version {version}")
    shown = f" ({', '.join(notes)})" if notes else ""
    yield f"pod {name}{shown}: {pod.status.phase}"
    for one in pod.status.conditions or ():
        if one.type == "PodScheduled" and one.status == "False":
            yield f"  {one.reason}: {one.message or ''}".rstrip(": ")
    for status in _statuses(pod):
        if state := _trouble(status):
            restarts = f", restarted {status.restart_count} times" if status.restart_count else ""
            yield f"  container {status.name}: {state}{restarts}"


def _trouble(status: Any) -> str:
    """What keeps a container from being ready; empty where it is, or has ended as it should."""
    state = status.state
    if state and state.waiting:
        return f"{state.waiting.reason or 'waiting'}: {state.waiting.message or ''}".rstrip(": ")
    if state and state.terminated and state.terminated.exit_code:
        return f"{state.terminated.reason or 'ended'}, exit code {state.terminated.exit_code}"
    return "running, not ready" if state and state.running and not status.ready else ""


def _last_lines(core: Any, pod: Any) -> Iterator[str]:
    """The last lines of each container that has trouble; of the attempt before, where it was started again."""
    from kubernetes.client import ApiException

    for status in _statuses(pod):
        if not _trouble(status) or not (status.restart_count or (status.state and not status.state.waiting)):
            continue
        for previous in (True, False) if status.restart_count else (False,):
            try:
                text = core.read_namespaced_pod_log(
                    pod.metadata.name,
                    pod.metadata.namespace,
                    container=status.name,
                    previous=previous,
                    tail_lines=_LINES,
                    _request_timeout=_TIMEOUT_S,
                )
            except ApiException as error:
                text = f"(no log: {api_reason(error)})" if not previous else ""
            if text and text.strip():
                yield from (f"  [{status.name}] {line}" for line in text.splitlines()[-_LINES:])
                break


def _events(core: Any, namespace: str, release: str, pods: set[str]) -> list[str]:
    """The last warnings about the release's pods, and about what makes them."""
    found = core.list_namespaced_event(namespace, field_selector="type=Warning", _request_timeout=_TIMEOUT_S).items

    def concerns(event: Any) -> bool:
        kind, name = event.involved_object.kind, event.involved_object.name or ""
        if kind == "Pod":
            return name in pods
        return name == release or name.startswith(f"{release}-")

    def when(event: Any) -> float:
        at = event.last_timestamp or event.event_time or event.metadata.creation_timestamp
        return at.timestamp() if at else 0.0

    lines = []
    for event in sorted(filter(concerns, found), key=when)[-_EVENTS:]:
        times = f" (x{event.count})" if (event.count or 1) > 1 else ""
        about = f"{event.involved_object.kind.lower()} {event.involved_object.name}"
        lines.append(f"event of {about}: {event.reason}: {' '.join((event.message or '').split())}{times}")
    return lines


@contextmanager
def api_errors(what: str) -> Iterator[None]:
    """Turn the API's refusals into errors that say what was wanted."""
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (ApiException, HTTPError, ConfigException) as error:
        raise ServingError(f"Could not {what}: {api_reason(error)}") from None
