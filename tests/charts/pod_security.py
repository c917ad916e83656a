"""The restricted Pod Security Standard, as a function: what of a pod breaks it.

https://kubernetes.io/docs/concepts/security/pod-security-standards/, of Kubernetes 1.29 and later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Manifest = Mapping[str, Any]

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"
}  # fmt: skip
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
}


def pod_specs(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and spec of every pod that the manifests make, whatever makes it."""
    for manifest in manifests:
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Pod":
            yield name, spec
        elif manifest["kind"] == "CronJob":
            yield name, spec["jobTemplate"]["spec"]["template"]["spec"]
        elif isinstance(spec.get("template"), dict) and "containers" in spec["template"].get("spec", {}):
            yield name, spec["template"]["spec"]


def violations(pod: Manifest) -> list[str]:
    """What of a pod's spec the restricted standard does not allow; empty if it is allowed."""
    found = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    context = pod.get("securityContext") or {}
    for volume in pod.get("volumes") or []:
        if kinds := set(volume) - {"name"} - VOLUMES:
            found.append(f"volume {volume['name']} is of kind {', '.join(sorted(kinds))}")
    found += [f"sysctl {one['name']}" for one in context.get("sysctls") or [] if one["name"] not in SYSCTLS]
    for container in [*(pod.get("initContainers") or []), *pod["containers"], *(pod.get("ephemeralContainers") or [])]:
        found += [f"container {container['name']}: {fault}" for fault in _container(container, context)]
    return found


def _container(container: Manifest, pod: Manifest) -> Iterator[str]:
    own = container.get("securityContext") or {}
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield "runs as root"
    profile = own.get("seccompProfile") or pod.get("seccompProfile") or {}
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield "does not drop all capabilities"
    if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    for options in (own.get("seLinuxOptions") or {}, pod.get("seLinuxOptions") or {}):
        if options.get("user") or options.get("role"):
            yield "SELinux user or role"
    if any(port.get("hostPort") for port in container.get("ports") or []):
        yield "hostPort"
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if any("host" in (container.get(probe) or {}).get(kind, {}) for kind in ("httpGet", "tcpSocket")):
            yield f"{probe} names a host"
