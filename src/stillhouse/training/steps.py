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

from stillhouse.artifacts import DatasetManifest, ModelManifest
from stillhouse.data.dataset import read_split
from stillhouse.errors import InputError, Problem
from stillhouse.models import checkpoints
from stillhouse.models.albert import albert_from_bert
from stillhouse.models.distilbert import parse_layers, student_from_bert
from stillhouse.models.families import position_limit
from stillhouse.models.references import Reference, parse_reference
from stillhouse.models.students import followed_layers, tokenizer_problems
from stillhouse.progress import Step
from stillhouse.tasks import get_task
from stillhouse.training import ranks
from stillhouse.training.checkpoints import open_store
from stillhouse.training.config import DistillConfig, FinetuneConfig
from stillhouse.training.scale import in_pod
from stillhouse.training.settings import hyperparameters, training_key

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
        if problems := checkpoints.check_reference(config.checkpoint, "albert"):
            raise InputError(problems)
        if teacher_dir is None:
            raise InputError(
                Problem(config.name, "teacher:// needs a trained teacher.", "Pass the teacher's artifact.")
            )
        teacher, tokenizer = run.load_teacher(teacher_dir)
        model, facts = run.factorise(teacher, tokenizer, reference, config.embedding_size, config.layers)
        layers = followed_layers("", model.config, teacher.config)
        return run.train(
            model, tokenizer, "factorised from the teacher", output_dir, step,
            distillation=(teacher, layers), facts=facts,
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
    """Distil a student from the teacher artifact and write a model artifact.

    Every layer of the student follows one of the teacher's: the one that it was copied from, or else the one at the
    same share of the depth. Where the widths differ, hidden states are not compared.

    Raises:
        InputError: the teacher is not built as BERT is, or lacks a layer that `config.layers` names; or the student
            does not share its tokenizer, or nothing is left that it could learn from.
    """
    run = _Run(config, dataset_dir, teacher_dir)
    if problems := checkpoints.check_reference(config.student, "student"):
        raise InputError(problems)
    teacher, tokenizer = run.load_teacher(teacher_dir)
    reference = parse_reference(config.student, "student")
    facts: dict[str, Any] = {}
    if reference.kind == "teacher" and reference.family != "albert":
        layers = parse_layers(config.layers, teacher.config.num_hidden_layers)
        student = student_from_bert(teacher, layers)
    else:
        if reference.kind == "teacher":
            student, facts = run.factorise(
                teacher, tokenizer, reference, config.albert_embedding_size, config.albert_layers
            )
        else:
            student = run.load_student(reference, tokenizer)
        layers = followed_layers(config.layers, student.config, teacher.config)
    if not layers and not (config.distillation.hard or config.distillation.soft):
        raise InputError(
            Problem("student", "has hidden states of another width than the teacher's, and nothing else to learn from.",
                    "Give distill_soft_weight or distill_hard_weight above 0.")
        )  # fmt: skip
    return run.train(
        student,
        tokenizer,
        "distilled",
        output_dir,
        step,
        distillation=(teacher, layers),
        facts={"layers": list(layers), **facts},
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

    def load_student(self, reference: Reference, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        """A student that is not made of the teacher's parts; it reads what the teacher reads."""
        if reference.kind == "scratch":
            return checkpoints.model_from_scratch(reference, "student", self.task.auto_class, self.head, tokenizer)
        if problems := tokenizer_problems(reference, tokenizer):
            raise InputError(problems)
        return checkpoints.load_model(reference, "student", self.task.auto_class, self.head)

    def factorise(
        self,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        reference: Reference,
        embedding_size: int,
        layers: int,
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        """An ALBERT made from the teacher, and what is worth noting of it."""
        sharing = reference.fields.get("layer_sharing", "all")
        model, energy = albert_from_bert(
            teacher,
            embedding_size=embedding_size,
            layers=layers,
            layer_sharing=sharing,
            token_counts=self.token_counts(tokenizer, teacher.config.vocab_size),
            seed=self.config.seed,
        )
        _log.info("embeddings factorised to %d, keeping %.1f%% of their energy", embedding_size, 100 * energy)
        return model, {"embedding_energy": round(energy, 4), "layer_sharing": sharing}

    def token_counts(self, tokenizer: PreTrainedTokenizerFast, rows: int) -> torch.Tensor:
        """How often each token stands in the training texts: [rows], of which the tokenizer may have fewer."""
        import torch

        counts = torch.zeros(rows)
        for batch in self._rows("train", tokenizer).iter(batch_size=1000):
            ids = torch.tensor([token for row in batch["input_ids"] for token in row])
            counts += torch.bincount(ids, minlength=rows)
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

        for taken, name in ((model, self.config.name), *([(distillation[0], "teacher")] if distillation else [])):
            limit = position_limit(taken.config)
            if limit and self.config.max_length > limit:
                raise InputError(
                    Problem("max_length", f"{self.config.max_length} exceeds the {limit} positions of {name}.",
                            f"Give at most {limit}.")
                )  # fmt: skip
        teaching: Distillation | None = None
        if distillation is not None:
            teacher, layers = distillation
            # Without layers to follow there is no cosine to take.
            settings = self.config.distillation if layers else dataclasses.replace(self.config.distillation, cosine=0.0)
            teaching = Distillation(teacher, settings, layers)
        rows = {"train_rows": self._rows("train", tokenizer), "validation_rows": self._rows("validation", tokenizer)}
        key = training_key(self.config.name, self.config, inputs=self.inputs)
        with open_store(self.config.checkpoint_dir, key) as store:
            metrics, history = train(
                self.config,
                task=self.task,
                model=model,
                tokenizer=tokenizer,
                **rows,
                store=store,
                distillation=teaching,
                step=step,
            )
            stores = [store]
            if isinstance(self.config, DistillConfig) and self.config.pruning.active:
                from stillhouse.training.pruning import prune_and_recover

                assert teaching is not None
                pruned = prune_and_recover(
                    self.config, key=key, task=self.task, model=model, tokenizer=tokenizer, **rows,
                    distillation=teaching, metrics=metrics, history=history, step=step,
                )  # fmt: skip
                model, metrics, history = pruned.model, pruned.metrics, pruned.history
                facts, stores = {**(facts or {}), **pruned.facts}, [store, pruned.store]
            ranks.barrier()
            if not ranks.is_main():
                return self._manifest(model, recipe, metrics, facts or {})
            manifest = self._save(model, tokenizer, recipe, output_dir, metrics, history, facts or {})
            # In a pod, the model is uploaded, or fetched by the step, after this process.
            for one in stores:
                one.finish(handed_over=not in_pod())
        return manifest

    def _rows(self, split: str, tokenizer: PreTrainedTokenizerFast) -> Dataset:
        from datasets import Dataset

        encoded = self.task.encode(read_split(self.dataset_dir, split), tokenizer, self.config.max_length)
        return Dataset.from_dict({**encoded, "length": [len(ids) for ids in encoded["input_ids"]]})

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
        checkpoints.save_model(model, output_dir)
        tokenizer.save_pretrained(output_dir)
        (output_dir / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
        self._manifest(model, recipe, metrics, facts).save(output_dir)
        return ModelManifest.load(output_dir)

    def _manifest(
        self, model: PreTrainedModel, recipe: str, metrics: dict[str, float], facts: dict[str, Any]
    ) -> ModelManifest:
        return ModelManifest(
            producer="distill" if isinstance(self.config, DistillConfig) else "finetune",
            inputs=self.inputs,
            name=self.config.name,
            task=self.task.name,
            recipe=recipe,
            family=model.config.model_type,
            label_names=self.dataset.label_names,
            parameters=checkpoints.parameter_count(model),
            max_length=self.config.max_length,
            hyperparameters={**hyperparameters(self.config), **facts},
            metrics=metrics,
        )
