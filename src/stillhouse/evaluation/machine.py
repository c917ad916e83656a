"""The machine that figures were measured on."""

from __future__ import annotations

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["available_cores", "describe_machine"]

_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CPUINFO = Path("/proc/cpuinfo")


def available_cores(cpu_max: Path = _CGROUP_CPU_MAX) -> int:
    """Cores that this process may use: its CPU affinity, cut to the container's CPU quota where there is one.

    A pod limited to 2 CPUs on a 64-core node still sees 64 in its affinity; that many threads would be throttled.

    Args:
        cpu_max: the cgroup v2 file that holds `<quota> <period>` in microseconds, or `max <period>`.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def _processor() -> str:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


def describe_machine(threads: int) -> dict[str, Any]:
    """Facts that a reader needs to judge latencies: processor, cores, threads used, memory in GB, library versions."""
    import psutil

    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": available_cores(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "onnxruntime": _version("onnxruntime"),
        "numpy": _version("numpy"),
        "tokenizers": _version("tokenizers"),
    }
