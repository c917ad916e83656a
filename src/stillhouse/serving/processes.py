"""Processes of the local server, and how to be rid of them without harming any other."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import psutil

__all__ = ["end_group", "is_running", "remove_shared_memory", "shared_memory_prefix", "start_ticks"]


def start_ticks(pid: int) -> int:
    """When a live process was made, in the kernel's clock ticks since boot, which no change of the clock moves.

    0 for one that has ended.
    """
    try:
        # proc(5): the second field, a name in parentheses, may hold anything; the third is the state.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def is_running(pid: int, ticks: int) -> bool:
    """Whether the very process that was recorded still runs: pids are used again, start times are not."""
    return pid > 0 and start_ticks(pid) == ticks > 0


def end_group(leader: int, *, patience: float) -> None:
    """End a process group: ask its leader, and after `patience` seconds kill whatever is left of the group.

    Args:
        leader: pid of the group's leader, and so the group's id.
        patience: seconds to wait for the leader and all others.
    """
    members = _members(leader)
    for process in members:
        if process.pid == leader:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
    psutil.wait_procs(members, timeout=patience)
    left = _members(leader)  # looked for anew: a Python backend may have been started meanwhile
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def _members(leader: int) -> list[psutil.Process]:
    """All live processes of a group, whether or not its leader still is among them."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def shared_memory_prefix(folder: Path) -> str:
    """Prefix of the names of the shared memory that the server in `folder` makes, its alone on this machine."""
    return f"stillhouse-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]}-"


def remove_shared_memory(folder: Path) -> None:
    """Remove what killed Python backends of the server in `folder` left in shared memory."""
    for path in Path("/dev/shm").glob(f"{shared_memory_prefix(folder)}*"):
        with contextlib.suppress(OSError):
            path.unlink()
