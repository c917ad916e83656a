"""What a node does with a pod, done with docker: volumes, users, probes, restarts, and the way a pod ends.

Each setting of the manifest is carried out, or refused by name: what is silently passed over would be tested nowhere.
Compare `pkg/kubelet/kuberuntime` and `pkg/kubelet/prober` of Kubernetes.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from containers import call

__all__ = ["Ending", "Objects", "Pod", "expanded"]

_POD_KEYS = {
    "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "terminationGracePeriodSeconds",
    "securityContext", "initContainers", "containers", "volumes", "topologySpreadConstraints", "restartPolicy",
    "activeDeadlineSeconds",
}  # fmt: skip
_CONTAINER_KEYS = {
    "name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "ports", "resources", "securityContext",
    "terminationMessagePolicy", "volumeMounts", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle",
}  # fmt: skip
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "": 1}
_LEAST_GRACE = 2.0
"""Seconds that SIGTERM gets where the hook used up the rest."""


@dataclass
class Objects:
    """ConfigMaps and Secrets of the namespace: by name, text by key."""

    config_maps: dict[str, dict[str, str]] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)

    def take(self, manifests: list[dict[str, Any]]) -> None:
        """Create what the manifests define."""
        for manifest in manifests:
            name = manifest["metadata"]["name"]
            if manifest["kind"] == "ConfigMap":
                self.config_maps[name] = manifest.get("data", {})
            if manifest["kind"] == "Secret":
                encoded = {key: base64.b64decode(value).decode() for key, value in manifest.get("data", {}).items()}
                self.secrets[name] = {**encoded, **manifest.get("stringData", {})}


@dataclass
class Ending:
    """How a container ended."""

    hook_exit: int | None = None
    """Of the preStop hook; None where there is none, or where time was over before it ended."""
    hook_output: str = ""
    hook_seconds: float = 0.0
    exit_code: int = -1
    seconds: float = 0.0
    """In all."""


def expanded(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` of an argument replaced as Kubernetes does: `$$` is a dollar, and an unknown name stays as it is."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([\w.-]+)\)", replace, text)


class Pod:
    """One pod of a template.

    Args:
        spec: `spec` of the pod.
        objects: what it may mount and read.
        folder: for its volumes.
        name: of the pod.
        namespace: of the pod.
        hosts: addresses of names that the cluster's DNS would know.
    """

    def __init__(
        self, spec: dict[str, Any], objects: Objects, folder: Path, *, name: str, namespace: str = "serving",
        hosts: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        assert set(spec) <= _POD_KEYS, set(spec) - _POD_KEYS
        self.spec, self.name, self._objects, self._folder = spec, name, objects, folder
        self.namespace, self.uid = namespace, str(uuid.uuid4())
        self.started = self.ready = self.terminating = False
        self.terminated_at = 0.0
        self.restarts = 0
        self.events: list[str] = []
        self._mounted: list[Path] = []
        self._containers: list[str] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        security = spec["securityContext"]
        known = {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "seccompProfile"}
        assert set(security) <= known, set(security) - known
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}  # which is docker's own
        assert security["runAsNonRoot"] and security["runAsUser"] > 0
        self._security = security
        folder.mkdir()
        self._volumes = {volume["name"]: self._volume(volume) for volume in spec.get("volumes", [])}
        # The sandbox, which holds the pod's network while containers come and go.
        self._sandbox = self._run(
            "sandbox", "--entrypoint=sleep", *self._hosts(hosts or {}), image=self._image(), more=["infinity"]
        )
        self.ip = call("docker", "inspect", "--format={{.NetworkSettings.IPAddress}}", self._sandbox).strip()

    # -- containers ---------------------------------------------------------------------------------------------------

    def run_init(self) -> subprocess.CompletedProcess[str]:
        """Run the init containers; returns how the last one ended that was run, with what it printed."""
        done = None
        for container in self.spec["initContainers"]:
            done = self.run_to_end(container)
            self.events.append(f"{container['name']} exited with {done.returncode}")
            if done.returncode:
                break
        assert done is not None
        return done

    def run_to_end(self, container: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """Run a container in the foreground."""
        options, command = self._arguments(container)
        everything = ["docker", "run", "--rm", *options, container["image"], *command]
        return subprocess.run(everything, capture_output=True, text=True, timeout=180)

    def start(self) -> None:
        """Run the init containers, start the one container, and look after it from now on."""
        done = self.run_init()
        assert done.returncode == 0, done.stderr
        (self._main,) = self.spec["containers"]
        self.container = self._start_main()
        for kind in ("startup", "liveness", "readiness"):
            if probe := self._main.get(f"{kind}Probe"):
                thread = threading.Thread(target=self._probe, args=(kind, probe), daemon=True)
                thread.start()
                self._threads.append(thread)

    def until(self, what: str, seconds: float, condition: Any) -> None:
        """Wait for something, or fail with all that is known."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (
                f"{self.name}: not {what} after {seconds} s\n{self.events}\n{self.log()}"
            )
            time.sleep(0.1)

    def log(self) -> str:
        """Of the present container."""
        done = subprocess.run(["docker", "logs", self.container], capture_output=True, text=True)
        return (done.stdout + done.stderr)[-5000:]

    def delete(self) -> Ending:
        """End the pod as a deletion does. From now on it is no endpoint; who routes to it finds out a little later."""
        self.terminating, self.terminated_at = True, time.monotonic()
        return self._end(float(self.spec["terminationGracePeriodSeconds"]))

    def remove(self) -> None:
        """Take away all that is left of it."""
        self.terminating = True
        for thread in self._threads:
            thread.join(timeout=60)
        subprocess.run(["docker", "rm", "--force", *self._containers], capture_output=True)
        for path in self._mounted:
            subprocess.run(["umount", path], check=True)

    def _start_main(self) -> str:
        options, command = self._arguments(self._main)
        self.events.append("started")
        return self._run(self._main["name"], *options, image=self._main["image"], more=command)

    def _run(self, name: str, *options: str, image: str, more: list[str]) -> str:
        full = f"stillhouse-test-{os.getpid()}-{self.name}-{name}-{uuid.uuid4().hex[:6]}"
        self._containers.append(full)
        call("docker", "run", "--detach", "--name", full, *options, image, *more)
        return full

    def _end(self, grace: float) -> Ending:
        """The hook, SIGTERM and SIGKILL, in the time that there is."""
        begin = time.monotonic()
        ending = Ending()
        if hook := self._main.get("lifecycle", {}).get("preStop"):
            (command,) = hook.values()
            try:
                done = self.execute(command["command"], timeout=grace)
                ending.hook_exit, ending.hook_output = done.returncode, done.stdout + done.stderr
            except subprocess.TimeoutExpired:
                self.events.append("the hook did not end in time")
            ending.hook_seconds = time.monotonic() - begin
        rest = max(_LEAST_GRACE, grace - ending.hook_seconds)
        call("docker", "stop", f"--time={round(rest)}", self.container, timeout=rest + 30)
        ending.exit_code = int(call("docker", "inspect", "--format={{.State.ExitCode}}", self.container))
        ending.seconds = time.monotonic() - begin
        return ending

    def execute(self, command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a command inside the container, as probes and hooks are."""
        everything = ["docker", "exec", self.container, *command]
        return subprocess.run(everything, capture_output=True, text=True, timeout=timeout)

    # -- probes -------------------------------------------------------------------------------------------------------

    def _probe(self, kind: str, probe: dict[str, Any]) -> None:
        known = {"exec", "grpc", "periodSeconds", "timeoutSeconds", "failureThreshold", "terminationGracePeriodSeconds"}
        assert set(probe) <= known, set(probe) - known
        failures = 0
        while not self.terminating:
            time.sleep(probe["periodSeconds"])
            if self.terminating or self.started == (kind == "startup"):
                failures = 0
                continue
            restarts = self.restarts
            good, said = self._ask(probe)
            if restarts != self.restarts or self.terminating:
                continue  # it was another container
            failures = 0 if good else failures + 1
            if not good:
                self.events.append(f"{kind}: {said}")
            if kind == "startup" and good:
                self.started = True
            elif kind == "readiness":
                self.ready = good or (self.ready and failures < probe["failureThreshold"])
            elif not good and failures >= probe["failureThreshold"]:
                self._restart(kind, probe["terminationGracePeriodSeconds"])
                failures = 0

    def _ask(self, probe: dict[str, Any]) -> tuple[bool, str]:
        timeout = float(probe["timeoutSeconds"])
        if "grpc" in probe:
            with grpc.insecure_channel(f"{self.ip}:{probe['grpc']['port']}") as channel:
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                try:
                    # HealthCheckResponse{status: SERVING}
                    return check(b"", timeout=timeout) == b"\x08\x01", "not serving"
                except grpc.RpcError as error:
                    return False, f"{error.code().name} {error.details()}"
        try:
            done = self.execute(probe["exec"]["command"], timeout)
        except subprocess.TimeoutExpired:
            return False, f"no answer in {timeout} s"
        return done.returncode == 0, done.stderr.strip()

    def _restart(self, kind: str, grace: float) -> None:
        with self._lock:
            if self.terminating:
                return
            self.events.append(f"killed, since {kind} failed")
            self.restarts += 1
            self.started = self.ready = False
            self._end(grace)
            self.container = self._start_main()

    # -- what a container is given ------------------------------------------------------------------------------------

    def _arguments(self, container: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Options of `docker run`, and what comes after the image."""
        assert set(container) <= _CONTAINER_KEYS, set(container) - _CONTAINER_KEYS
        environment = self._environment(container)
        security = dict(container["securityContext"])
        assert security.pop("allowPrivilegeEscalation") is False
        assert security.pop("capabilities") == {"drop": ["ALL"]}
        options = [
            f"--network=container:{self._sandbox}", "--security-opt=no-new-privileges", "--cap-drop=ALL",
            f"--user={self._security['runAsUser']}:{self._security['runAsGroup']}",
            f"--group-add={self._security['fsGroup']}",
        ]  # fmt: skip
        options += ["--read-only"] if security.pop("readOnlyRootFilesystem") else []
        assert not security, security
        limits = container["resources"].get("limits", {})
        assert set(limits) <= {"memory", "cpu"}
        if "memory" in limits:
            options += [f"--memory={_bytes(limits['memory'])}", f"--memory-swap={_bytes(limits['memory'])}"]
        if "cpu" in limits:
            options.append(f"--cpus={limits['cpu']}")
        for mount in container["volumeMounts"]:
            assert set(mount) <= {"name", "mountPath", "readOnly"}
            mode = "ro" if mount.get("readOnly") else "rw"
            options.append(f"--volume={self._volumes[mount['name']]}:{mount['mountPath']}:{mode}")
        options += [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
        command = [expanded(part, environment) for part in container["command"]]
        arguments = [expanded(part, environment) for part in container.get("args", [])]
        return [*options, f"--entrypoint={command[0]}"], [*command[1:], *arguments]

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            reference = source["secretRef"]
            assert reference["name"] in self._objects.secrets or reference.get("optional"), reference
            found |= self._objects.secrets.get(reference["name"], {})
        fields = {"metadata.uid": self.uid, "metadata.name": self.name, "metadata.namespace": self.namespace}
        for entry in container.get("env", []):
            if "value" in entry:
                found[entry["name"]] = expanded(entry["value"], found)
            else:
                ((kind, reference),) = entry["valueFrom"].items()
                assert kind in ("fieldRef", "secretKeyRef"), kind
                found[entry["name"]] = (
                    fields[reference["fieldPath"]]
                    if kind == "fieldRef"
                    else self._objects.secrets[reference["name"]][reference["key"]]
                )
        return found

    def _volume(self, volume: dict[str, Any]) -> Path:
        """A volume on this machine, its files owned as by `fsGroup`."""
        path = self._folder / volume["name"]
        path.mkdir()
        ((kind, settings),) = ((key, value) for key, value in volume.items() if key != "name")
        group = self._security["fsGroup"]
        if kind == "emptyDir":
            if settings.get("medium") == "Memory":
                options = f"size={_bytes(settings['sizeLimit'])}"
                call("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)
                self._mounted.append(path)
            os.chown(path, 0, group)
            path.chmod(0o2777)
            return path
        mode = settings.get("defaultMode", 0o644)
        sources = settings["sources"] if kind == "projected" else [{kind: settings}]
        for source in sources:
            ((what, reference),) = source.items()
            contents = {"configMap": self._objects.config_maps, "secret": self._objects.secrets}[what]
            data = contents[reference.get("name") or reference["secretName"]]
            for item in reference.get("items", [{"key": key, "path": key} for key in data]):
                file = path / item["path"]
                file.write_text(data[item["key"]])
                os.chown(file, 0, group)
                file.chmod(mode | 0o440)
        return path

    def _image(self) -> str:
        return str([*self.spec.get("initContainers", []), *self.spec["containers"]][0]["image"])

    @staticmethod
    def _hosts(hosts: Mapping[str, str]) -> list[str]:
        return [f"--add-host={name}:{address}" for name, address in hosts.items()]


def _bytes(quantity: str | int) -> int:
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi|)", str(quantity))
    assert match, quantity
    return int(match[1]) * _UNITS[match[2]]
