"""The processes that train one model together, as torchrun starts them; elsewhere there is one, of rank 0.

A node is a machine, or one pod: its processes share a disk, and processes of different nodes need not.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["barrier", "from_main", "is_main", "is_node_main", "join", "leave", "rank", "scratch", "share", "world_size"]

T = TypeVar("T")
_PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: the first may have to wait for a lock, or fetch a large checkpoint."""


def join() -> None:
    """Join the processes that torchrun started, over NCCL where there are GPUs and Gloo elsewhere."""
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", timeout=_PATIENCE, device_id=device)
    else:
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)


def leave() -> None:
    """Leave them, once all are here."""
    barrier()
    _group().destroy_process_group()


def world_size() -> int:
    """Number of processes on all nodes."""
    return int(_group().get_world_size()) if _joined() else 1


def rank() -> int:
    """This process's number among all, from 0."""
    return int(_group().get_rank()) if _joined() else 0


def is_main() -> bool:
    """Whether this is the one process that writes what all have made."""
    return rank() == 0


def is_node_main() -> bool:
    """Whether this is the one process of its node that writes to the node's disk."""
    return not _joined() or int(os.environ["LOCAL_RANK"]) == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if _joined():
        _group().barrier()


def from_main(value: T) -> T:
    """The main process's value, in every process. It is pickled, and never leaves the processes of one training."""
    if not _joined():
        return value
    box = [value]
    _group().broadcast_object_list(box, src=0)
    return box[0]


def share(count: torch.Tensor) -> torch.Tensor:
    """This process's count (a scalar) divided by the mean of all processes' counts; one in a single process.

    A mean over a process's items, times this, averages over processes to the mean over all items.
    """
    if not _joined():
        return count.new_ones(())
    total = count.detach().clone()
    _group().all_reduce(total)
    return count * world_size() / total


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A temporary folder that all processes of a node share; it is deleted once all are done with it."""
    if not is_node_main():
        paths = _gather(None)
        yield Path(paths[rank() - int(os.environ["LOCAL_RANK"])])
        barrier()
        return
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        _gather(name)
        yield Path(name)
        # Not in a `finally`: after an error the others may never come here, and torchrun ends them.
        barrier()


def _gather(value: Any) -> list[Any]:
    values = [value] * world_size()
    if _joined():
        _group().all_gather_object(values, value)
    return values


def _joined() -> bool:
    # Without torch there is nothing to have joined, and steps that only watch need not load it.
    return "torch" in sys.modules and _group().is_available() and _group().is_initialized()


def _group() -> Any:
    return sys.modules["torch"].distributed
