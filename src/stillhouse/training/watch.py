"""What every training does beside its steps: tell how far it is, seal and mirror its checkpoints, and load them."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback

from stillhouse.progress import Step
from stillhouse.training import ranks
from stillhouse.training.checkpoints import CheckpointStore

__all__ = ["ResumableTrainer", "Watch"]


class ResumableTrainer(Trainer):
    """A trainer that knows that of tensors which are tied a checkpoint holds one."""

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # With that one, all have been loaded.
        tied = self.model.all_tied_weights_keys
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)


class Watch(TrainerCallback):
    """Reports progress, seals checkpoints, and mirrors them to the store's remote."""

    def __init__(self, step: Step | None, store: CheckpointStore) -> None:
        self._step = step
        self._store = store
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The path that a resumed state names is gone where the folder is a new copy of an object store's.
        best = self._store.folder / f"checkpoint-{state.best_global_step}"
        if state.best_model_checkpoint is None and best.is_dir():
            state.best_model_checkpoint = str(best)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._step and state.is_world_process_zero:
            self._step.progress(state.global_step, state.max_steps, self._note)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        name = args.metric_for_best_model
        if metrics and f"eval_{name}" in metrics:
            self._note = f"validation {name} {metrics[f'eval_{name}']:.3f}"

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ranks.barrier()  # each process has written its part
        if ranks.is_main() or (self._store.per_node and ranks.is_node_main()):
            self._store.seal(state.global_step)
        if not self._store.remote:
            return
        if ranks.is_node_main() and not ranks.is_main():
            self._store.push_random_states()
        ranks.barrier()
        if ranks.is_main():
            self._store.push()
