"""The two training steps: `finetune` and `distill`, from artifacts to a model artifact.

Called in each of several processes that joined (see `stillhouse.training.ranks`), they train one model together, and
the main process writes it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import DatasetManifest, ModelManifest, digest_json
from stillhouse.data.dataset import read_split
from stillhouse.errors import InputError, Problem
from stillhouse.models import checkpoints
from stillhouse.models.albert import albert_from_bert, evenly_spaced_layers
from stillhouse.models.distilbert import parse_layers, student_from_bert
from stillhouse.models.families import position_limit
from stillhouse.models.references import parse_reference
from stillhouse.progress import Step
from stillhouse.tasks import get_task
from stillhouse.training import ranks
from stillhouse.training.checkpoints import open_store
from stillhouse.training.config import DistillConfig, FinetuneConfig, TrainConfig
from stillhouse.training.scale import in_pod

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stillhouse.training.trainer import Distillation

__all__ = ["distill", "finetune", "run"]

_log = logging.getLogger(__name__)
_DEFAULT_VOCABULARY = 8000


def finetune(
    config: FinetuneConfig,
    *,
    dataset_dir: Path,
    output_dir: Path,
    teacher_dir: Path | None = None,
    step: Step | None = None,
) -> ModelManifest:
    """Train `config.checkpoint` on the dataset's task and write a model artifact.

    A checkpoint `teacher://` becomes an ALBERT made from `teacher_dir`, trained with the distillation loss on every
    layer's hidden states; anything else is fine-tuned on the labels.

    Raises:
        InputError: the checkpoint or the settings will not do.
    """
    run = _Run(config, dataset_dir, teacher_dir)
    reference = parse_reference(config.checkpoint, config.name)
    if reference.kind == "teacher":
        if teacher_dir is None:
            raise InputError(
                Problem(config.name, "teacher:// needs a trained teacher.", "Pass the teacher's artifact.")
            )
        teacher, tokenizer = run.load_teacher(teacher_dir)
        model, energy = albert_from_bert(
            teacher,
            embedding_size=config.embedding_size,
            layers=config.layers,
            token_counts=run.token_counts(tokenizer),
            seed=config.seed,
        )
        _log.info("embeddings factorised to %d, keeping %.1f%% of their energy", config.embedding_size, 100 * energy)
        followed = evenly_spaced_layers(model.config.num_hidden_layers, teacher.config.num_hidden_layers)
        return run.train(
            model, tokenizer, "factorised from the teacher", output_dir, step,
            distillation=(teacher, followed), facts={"embedding_energy": round(energy, 4)},
        )  # fmt: skip
    if reference.kind == "scratch":
        texts = read_split(dataset_dir, "train")["text"]
        vocabulary = int(reference.fields.get("vocab_size", _DEFAULT_VOCABULARY))
        tokenizer = ranks.from_main(checkpoints.train_tokenizer(texts, vocabulary, config.max_length))
        model = checkpoints.model_from_scratch(reference, config.name, run.task.auto_class, run.head, tokenizer)
        return run.train(model, tokenizer, "from scratch", output_dir, step)
    tokenizer = checkpoints.load_tokenizer(reference, config.name)
    model = checkpoints.load_model(reference, config.name, run.task.auto_class, run.head)
    return run.train(model, tokenizer, "fine-tuned", output_dir, step)


def distill(
    config: DistillConfig, *, dataset_dir: Path, teacher_dir: Path, output_dir: Path, step: Step | None = None
) -> ModelManifest:
    """Distil a DistilBERT from the teacher artifact and write a model artifact.

    Raises:
        InputError: the teacher is not a BERT, or lacks a layer that `config.layers` names.
    """
    run = _Run(config, dataset_dir, teacher_dir)
    teacher, tokenizer = run.load_teacher(teacher_dir)
    layers = parse_layers(config.layers, teacher.config.num_hidden_layers)
    student = student_from_bert(teacher, layers)
    return run.train(
        student,
        tokenizer,
        "distilled",
        output_dir,
        step,
        distillation=(teacher, layers),
        facts={"layers": list(layers)},
    )


def run(
    config: FinetuneConfig | DistillConfig,
    *,
    dataset_dir: Path,
    output_dir: Path,
    teacher_dir: Path | None = None,
    step: Step | None = None,
) -> ModelManifest:
    """Whichever of the two steps the settings are of."""
    if isinstance(config, DistillConfig):
        assert teacher_dir is not None
        return distill(config, dataset_dir=dataset_dir, teacher_dir=teacher_dir, output_dir=output_dir, step=step)
    return finetune(config, dataset_dir=dataset_dir, teacher_dir=teacher_dir, output_dir=output_dir, step=step)


class _Run:
    """What both steps share: the dataset, the task, seeding, the checkpoint key, and writing the artifact."""

    def __init__(self, config: FinetuneConfig | DistillConfig, dataset_dir: Path, teacher_dir: Path | None) -> None:
        from transformers import set_seed

        if problems := config.problems():
            raise InputError(problems)
        self.config = config
        self.dataset_dir = dataset_dir
        self.dataset = DatasetManifest.load(dataset_dir)
        self.task = get_task(self.dataset.task)
        self.head = self.task.head_config(self.dataset.label_names)
        self.inputs = {"dataset": DatasetManifest.digest(dataset_dir)}
        if teacher_dir is not None:
            self.inputs["teacher"] = ModelManifest.digest(teacher_dir)
        set_seed(config.seed)

    def load_teacher(self, folder: Path) -> tuple[Any, PreTrainedTokenizerFast]:
        reference = checkpoints.reference_for(folder)
        tokenizer = checkpoints.load_tokenizer(reference, "teacher")
        return checkpoints.load_model(reference, "teacher", self.task.auto_class, self.head), tokenizer

    def token_counts(self, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
        """How often each token [v] stands in the training texts."""
        import torch

        counts = torch.zeros(len(tokenizer))
        for batch in self._rows("train", tokenizer).iter(batch_size=1000):
            ids = torch.tensor([token for row in batch["input_ids"] for token in row])
            counts += torch.bincount(ids, minlength=len(tokenizer))
        return counts

    def train(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        recipe: str,
        output_dir: Path,
        step: Step | None,
        *,
        distillation: tuple[PreTrainedModel, tuple[int, ...]] | None = None,
        facts: dict[str, Any] | None = None,
    ) -> ModelManifest:
        from stillhouse.training.trainer import Distillation, train

        limit = position_limit(model.config)
        if limit is not None and self.config.max_length > limit:
            raise InputError(
                Problem("max_length", f"{self.config.max_length} exceeds the {limit} positions of {self.config.name}.",
                        f"Give at most {limit}.")
            )  # fmt: skip
        teaching: Distillation | None = None
        if distillation is not None:
            teaching = Distillation(distillation[0], self.config.distillation, distillation[1])
        with open_store(self.config.checkpoint_dir, self._key()) as store:
            metrics, history = train(
                self.config,
                task=self.task,
                model=model,
                tokenizer=tokenizer,
                train_rows=self._rows("train", tokenizer),
                validation_rows=self._rows("validation", tokenizer),
                store=store,
                distillation=teaching,
                step=step,
            )
            ranks.barrier()
            if not ranks.is_main():
                return self._manifest(model, recipe, metrics, facts or {})
            manifest = self._save(model, tokenizer, recipe, output_dir, metrics, history, facts or {})
            # In a pod, the model is uploaded, or fetched by the step, after this process.
            store.finish(handed_over=not in_pod())
        return manifest

    def _rows(self, split: str, tokenizer: PreTrainedTokenizerFast) -> Dataset:
        from datasets import Dataset

        encoded = self.task.encode(read_split(self.dataset_dir, split), tokenizer, self.config.max_length)
        return Dataset.from_dict({**encoded, "length": [len(ids) for ids in encoded["input_ids"]]})

    def _key(self) -> str:
        """Digest of all that determines the training; where checkpoints are kept does not."""
        settings = {k: v for k, v in dataclasses.asdict(self.config).items() if k != "checkpoint_dir"}
        if ranks.world_size() > 1:
            settings["processes"] = ranks.world_size()  # they decide the rows of a step
        return f"{self.config.name}-{digest_json({'settings': settings, 'inputs': self.inputs})[:16]}"

    def _save(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        recipe: str,
        output_dir: Path,
        metrics: dict[str, float],
        history: list[dict[str, Any]],
        facts: dict[str, Any],
    ) -> ModelManifest:
        output_dir.mkdir(parents=True, exist_ok=True)
        model.config.architectures = [type(model).__name__]
        model.save_pretrained(output_dir, safe_serialization=True)
        tokenizer.save_pretrained(output_dir)
        (output_dir / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
        self._manifest(model, recipe, metrics, facts).save(output_dir)
        return ModelManifest.load(output_dir)

    def _manifest(
        self, model: PreTrainedModel, recipe: str, metrics: dict[str, float], facts: dict[str, Any]
    ) -> ModelManifest:
        together = {"processes": ranks.world_size()} if ranks.world_size() > 1 else {}
        return ModelManifest(
            producer="distill" if recipe == "distilled" else "finetune",
            inputs=self.inputs,
            name=self.config.name,
            task=self.task.name,
            recipe=recipe,
            family=model.config.model_type,
            label_names=self.dataset.label_names,
            parameters=checkpoints.parameter_count(model),
            max_length=self.config.max_length,
            hyperparameters={**_settings(self.config), **together, **facts},
            metrics=metrics,
        )


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in ("name", "checkpoint_dir", "code_version")}
