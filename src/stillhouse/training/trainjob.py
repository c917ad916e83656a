"""TrainJobs on the cluster that a step runs on, through the Kubeflow SDK's client.

A job is created from its manifest, and its state read from its conditions: the SDK (0.5) takes environment values but
no references to secrets, and cannot read a job whose pods ask for GPUs of some makers.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.errors import TrainingError
from stillhouse.kubernetes_api import api_reason
from stillhouse.training.manifest import NODE

if TYPE_CHECKING:
    from kubeflow.trainer import KubernetesBackendConfig

__all__ = ["RUNTIME", "State", "TrainJobs"]

RUNTIME = "torch-distributed"
"""The training runtime that Kubeflow Trainer brings for torch; one of that name in the namespace goes before it."""
_JOB = ("trainer.kubeflow.org", "v1alpha1")
_PLURAL = "trainjobs"
_TIMEOUT_S = 30
_TAIL = 25

State = Literal["absent", "ending", "active", "complete", "failed"]


class TrainJobs:
    """The TrainJobs of one namespace.

    Args:
        config: how to reach the cluster; by default as a pod does, with its service account.
    """

    def __init__(self, config: KubernetesBackendConfig | None = None) -> None:
        from kubeflow.trainer import TrainerClient

        # It warns in many lines where it may not read the installed version, which nothing here needs.
        logging.getLogger("kubeflow.trainer.backends.kubernetes.backend").setLevel(logging.ERROR)
        self._client = TrainerClient(config)
        backend: Any = self._client.backend
        self._objects, self._core, self.namespace = backend.custom_api, backend.core_api, backend.namespace

    def own_pod(self) -> dict[str, Any]:
        """The pod that this process runs in."""
        name = os.environ["KFP_POD_NAME"]
        with _refusals(f"read the step's own pod {name}"):
            pod = self._core.read_namespaced_pod(name, self.namespace, _request_timeout=_TIMEOUT_S)
        found: dict[str, Any] = self._core.api_client.sanitize_for_serialization(pod)
        return found

    def runtime(self) -> dict[str, str]:
        """Reference to the training runtime, the namespace's own or the cluster's.

        Raises:
            TrainingError: there is none, or it may not be read.
        """
        try:
            found = self._client.get_runtime(RUNTIME)
        except (RuntimeError, TimeoutError) as error:
            reason = api_reason(error.__cause__) if error.__cause__ else str(error)
            raise TrainingError(
                f"The training runtime {RUNTIME!r} cannot be read: {reason}. Is Kubeflow Trainer 2.2 or later "
                f"installed, with its runtimes, and may the step's service account in {self.namespace!r} read them?"
            ) from None
        return {"kind": found.kind.value, "name": found.name}

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Create the job.

        Raises:
            TrainingError: the cluster refuses it.
        """
        with _refusals(f"create the TrainJob {manifest['metadata']['name']}"):
            self._objects.create_namespaced_custom_object(
                *_JOB, self.namespace, _PLURAL, manifest, _request_timeout=_TIMEOUT_S
            )

    def state(self, name: str) -> State:
        """How far the job is.

        Raises:
            TrainingError: the cluster does not say.
        """
        from kubernetes.client import ApiException

        with _refusals(f"read the TrainJob {name}"):
            try:
                job = self._objects.get_namespaced_custom_object(
                    *_JOB, self.namespace, _PLURAL, name, _request_timeout=_TIMEOUT_S
                )
            except ApiException as error:
                if error.status == 404:
                    return "absent"
                raise
        if job["metadata"].get("deletionTimestamp"):
            return "ending"
        true = {one["type"] for one in job.get("status", {}).get("conditions", ()) if one["status"] == "True"}
        return "complete" if "Complete" in true else "failed" if "Failed" in true else "active"

    def delete(self, name: str) -> None:
        """Delete the job and its pods, if it is there; it is gone once they are.

        Raises:
            TrainingError: the cluster refuses.
        """
        from kubernetes.client import ApiException

        with _refusals(f"delete the TrainJob {name}"):
            try:
                self._objects.delete_namespaced_custom_object(
                    *_JOB, self.namespace, _PLURAL, name, propagation_policy="Foreground", _request_timeout=_TIMEOUT_S
                )
            except ApiException as error:
                if error.status != 404:
                    raise

    def wait_until_gone(self, name: str, wait_s: float = 300.0) -> None:
        """Wait for a job that was deleted.

        Raises:
            TrainingError: it is still there after `wait_s`.
        """
        until = time.monotonic() + wait_s
        while self.state(name) != "absent":
            if time.monotonic() >= until:
                raise TrainingError(f"The TrainJob {name} is still being deleted after {wait_s:.0f} s.")
            time.sleep(1.0)

    def obstacle(self, name: str) -> str:
        """Why a pod of the job does not start, in the cluster's words; empty where none waits, or none may be seen."""
        from kubernetes.client import ApiException

        try:
            pods = self._pods(name)
        except ApiException:
            return ""
        for pod in pods:
            if pod.status.phase != "Pending":
                continue
            for condition in pod.status.conditions or ():
                if condition.type == "PodScheduled" and condition.status == "False":
                    return str(condition.message or condition.reason)
            for status in pod.status.container_statuses or ():
                waiting = status.state.waiting if status.state else None
                if waiting and waiting.reason not in ("ContainerCreating", "PodInitializing"):
                    return f"{waiting.reason}: {waiting.message or ''}".rstrip(": ")
        return ""

    def last_lines(self, name: str) -> list[str]:
        """The last lines that the job's pods wrote, those of pods that failed first; what can be had of them."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        lines: list[str] = []
        try:
            pods = self._pods(name)
            for pod in sorted(pods, key=lambda one: (one.status.phase != "Failed", one.metadata.name)):
                log = self._core.read_namespaced_pod_log(
                    pod.metadata.name, self.namespace, container=NODE, tail_lines=_TAIL, _request_timeout=_TIMEOUT_S
                )
                lines += [f"[{pod.metadata.name}] {line}" for line in log.splitlines()]
                if pod.status.phase == "Failed":
                    break  # the first that failed tells why; the others were ended with it
        except (ApiException, HTTPError) as error:
            lines.append(f"(no logs: {api_reason(error)})")
        return lines

    def _pods(self, name: str) -> list[Any]:
        selector = f"jobset.sigs.k8s.io/jobset-name={name}"
        pods = self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_TIMEOUT_S)
        return list(pods.items)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn the API's refusals into errors that say what was wanted."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (ApiException, HTTPError) as error:
        raise TrainingError(f"The step could not {what}: {api_reason(error)}") from None
