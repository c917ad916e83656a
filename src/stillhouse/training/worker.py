"""One of the processes that train together, as torchrun starts it: `python -m stillhouse.training.worker PLACE FOLDER`.

PLACE is where the step waits for the outcome; FOLDER is on the node's own disk, or is that place, and holds the inputs.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from pathlib import Path

from stillhouse.progress import Step
from stillhouse.training import ranks
from stillhouse.training.staging import Place, Work, reporting

__all__ = ["main"]

_log = logging.getLogger(__name__)
_INTERVAL_S = 5.0


class _Reporter(Step):
    """Tells those who watch the step from another machine, too, how far it is."""

    def __init__(self, step_id: str, place: Place) -> None:
        super().__init__(step_id)
        self._place = place
        self._written = float("-inf")

    def progress(self, done: int, total: int, note: str = "") -> None:
        super().progress(done, total, note)
        now = time.monotonic()
        if done >= total or now - self._written >= _INTERVAL_S:
            self._written = now
            try:
                self._place.write("progress.json", {"done": done, "total": total, "note": note})
            except Exception as error:  # of any object store; a training does not end for want of an onlooker
                _log.warning("how far the training is could not be told: %s", error)


def main(place_uri: str, folder: Path) -> None:
    """Train with the other processes; the main one writes the model to the place."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    place = Place(place_uri)
    ranks.join()
    with reporting(place):
        work = Work.from_json(place.read("work.json"))
        model = folder / "model"
        step = _Reporter(work.step, place) if ranks.is_main() else None
        if ranks.is_main():
            shutil.rmtree(model, ignore_errors=True)  # of an attempt that was cut off
        work.do(folder, output_dir=model, step=step)
        if ranks.is_main() and place.path is None:
            place.put("model", model)
    ranks.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
