"""What a stopped server should have taken along."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from stillhouse.serving.processes import shared_memory_prefix


def remains(folder: Path) -> list[str]:
    """Processes and shared memory of a server, which should be none after it was stopped."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(f"{process.pid} {line}")
    return found + [path.name for path in Path("/dev/shm").glob(f"{shared_memory_prefix(folder)}*")]
