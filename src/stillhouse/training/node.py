"""One machine's part in a training: `python -m stillhouse.training.node PLACE` is the command of a TrainJob's pods.

It fetches the inputs once for all processes of the machine and starts these with torchrun. Which of the machines this
is, and where the first one listens, Kubeflow Trainer says in the `PET_*` variables that torchrun reads.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from stillhouse.training.staging import Place, Work, reporting

__all__ = ["run"]


def run(place_uri: str) -> None:
    """Do this machine's part of the work that is described at the place.

    Raises:
        SystemExit: something foreseen went wrong; it is reported at the place.
        ChildFailedError: of torch: a process failed, and all of this machine were ended.
    """
    from torch.distributed.run import main as torchrun

    place = Place(place_uri)
    with ExitStack() as stack:
        with reporting(place):
            work = Work.from_json(place.read("work.json"))
            folder = place.path
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stillhouse-node-")))
                for role in work.inputs:
                    place.get(role, folder / role)
            for role, digest in work.inputs.items():
                place.check(role, folder / role, digest)
        together = ["--standalone"] if work.nodes == 1 else [f"--nnodes={work.nodes}"]
        worker = ["-m", "stillhouse.training.worker", place_uri, str(folder)]
        torchrun([*together, f"--nproc-per-node={work.processes}", *worker])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run(sys.argv[1])
