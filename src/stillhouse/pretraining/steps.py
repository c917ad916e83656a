"""`pretrain`: from a prepared corpus to a checkpoint that `finetune` and `distill` take.

Called in each of several processes that joined (see `stillhouse.training.ranks`), they train one model together, and
the main process writes it.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import CorpusManifest, ModelManifest
from stillhouse.errors import InputError, Problem
from stillhouse.models import checkpoints
from stillhouse.models.families import position_limit
from stillhouse.models.references import parse_reference
from stillhouse.pretraining.config import PretrainConfig
from stillhouse.progress import Step
from stillhouse.training import ranks
from stillhouse.training.checkpoints import CheckpointStore, open_store
from stillhouse.training.scale import in_pod
from stillhouse.training.settings import hyperparameters, training_key

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stillhouse.pretraining.stream import Recipe
    from stillhouse.pretraining.trainer import Objective
    from stillhouse.pretraining.vocabulary import Vocabulary

__all__ = ["pretrain"]

_log = logging.getLogger(__name__)
_HEAD_LEARNING_RATE = 1e-3
"""Of a teacher's new head alone, which is fitted faster than a whole model is trained."""
_RECIPES = {"mlm": "masked language modelling", "mlm+nsp": "masked language modelling and next-sentence prediction",
            "mlm+sop": "masked language modelling and sentence-order prediction",
            "triple": "distilled from a language model"}  # fmt: skip


def pretrain(config: PretrainConfig, *, corpus_dir: Path, output_dir: Path, step: Step | None = None) -> ModelManifest:
    """Train a language model on a prepared corpus and write a model artifact, with its losses in `history.json`.

    Raises:
        InputError: the settings, the model or the teacher will not do.
    """
    run = _Run(config, Path(corpus_dir))
    with ExitStack() as stack:
        store = stack.enter_context(open_store(config.checkpoint_dir, run.key()))
        stores = [store]
        objective = run.triple(stack, stores, step) if config.objective == "triple" else run.language()
        metrics, history = run.train(objective, store, step)
        ranks.barrier()
        manifest = run.manifest(objective.model.model, metrics)
        if not ranks.is_main():
            return manifest
        run.save(objective.model.model, Path(output_dir), history, manifest)
        for one in stores:
            # In a pod, the model is uploaded, or fetched by the step, after this process.
            one.finish(handed_over=not in_pod())
    return ModelManifest.load(output_dir)


class _Part(Step):
    """A part of the step: its progress is counted on from what came before it."""

    def __init__(self, whole: Step, before: int, total: int) -> None:
        super().__init__(whole.id)
        self._whole, self._before, self._total = whole, before, total

    def progress(self, done: int, total: int, note: str = "") -> None:
        if not self._before and total < self._total:
            note = f"fitting the teacher's head; {note}" if note else "fitting the teacher's head"
        self._whole.progress(self._before + done, self._total, note)


class _Run:
    """What the parts of a pretraining share."""

    def __init__(self, config: PretrainConfig, corpus_dir: Path) -> None:
        from transformers import set_seed

        from stillhouse.pretraining.models import identity
        from stillhouse.pretraining.stream import Recipe
        from stillhouse.pretraining.vocabulary import Vocabulary

        if problems := config.problems():
            raise InputError(problems)
        self.config = config
        self.corpus_dir = corpus_dir
        CorpusManifest.load(corpus_dir)
        self.inputs = {"corpus": CorpusManifest.digest(corpus_dir)}
        self.identities = {"model": identity(config.model, "model")}
        if config.objective == "triple":
            self.identities["teacher"] = identity(config.teacher, "teacher")
            if (folder := Path(parse_reference(config.teacher, "teacher").location) / "model.json").is_file():
                self.inputs["teacher"] = ModelManifest.digest(folder.parent)
        self.tokenizer: PreTrainedTokenizerFast = checkpoints.load_tokenizer(
            checkpoints.reference_for(corpus_dir / "tokenizer"), "tokenizer"
        )
        self.vocabulary: Vocabulary = Vocabulary.of(self.tokenizer)
        self.recipe: Recipe = Recipe(
            length=config.sequence_length,
            task={"mlm+nsp": "nsp", "mlm+sop": "sop"}.get(config.objective, ""),
            mask_probability=config.mask_probability,
            whole_words=config.whole_word_masking,
            longest=config.mask_ngrams,
            seed=config.seed,
        )
        self.facts: dict[str, Any] = {}
        self.head_steps = 0
        set_seed(config.seed)

    def language(self) -> Objective:
        from stillhouse.pretraining.models import build_model
        from stillhouse.pretraining.trainer import LanguageLoss

        model = build_model(self.config, self.tokenizer)
        self._check_length(model, "model")
        return LanguageLoss(model, sentence_weight=self.config.sentence_weight if self.recipe.task else 0.0)

    def triple(self, stack: ExitStack, stores: list[CheckpointStore], step: Step | None) -> Objective:
        """The student and its teacher, whose head is fitted first where it has none."""
        from transformers import set_seed

        from stillhouse.pretraining.models import (
            build_model,
            factorised_student,
            follow_layers,
            load_teacher,
            masked_student,
        )
        from stillhouse.pretraining.trainer import TripleLoss

        config = self.config
        teacher, fresh = load_teacher(config, self.tokenizer)
        self._check_length(teacher, "teacher")
        student = None
        depth = None
        reference = parse_reference(config.model, "model")
        if reference.kind != "teacher":
            student = build_model(config, self.tokenizer)
            self._check_length(student, "model")
            if config.cosine_weight and student.config.hidden_size != teacher.config.hidden_size:
                what = (f"{config.cosine_weight:g} compares hidden states of width {student.config.hidden_size} with "
                        f"the teacher's of width {teacher.config.hidden_size}.")  # fmt: skip
                raise InputError(Problem("cosine_weight", what, "Set it to 0, or give a model as wide as its teacher."))
            depth = student.config.num_hidden_layers
        elif reference.family == "albert":
            depth = reference.fields.get("layers", teacher.config.num_hidden_layers)
        layers = follow_layers(config, teacher, depth)
        self.facts["layers"] = list(layers)
        if fresh:
            self.head_steps = config.head_steps
            store = stack.enter_context(open_store(config.checkpoint_dir, f"{self.key()}-head"))
            stores.append(store)
            self.facts["teacher_perplexity"] = round(self._fit_head(teacher, store, step), 4)
            set_seed(config.seed)
        if reference.family == "albert" and student is None:
            counts = self._token_counts(teacher.config.vocab_size)
            student, facts = factorised_student(teacher, reference, counts, config.seed)
            self.facts |= facts
        elif student is None:
            student = masked_student(teacher, layers, self._dropout())
        return TripleLoss(student, teacher, layers, config)

    def train(
        self, objective: Objective, store: CheckpointStore, step: Step | None
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        config = self.config
        part = _Part(step, self.head_steps, self.head_steps + config.steps) if step else None
        return self._train(objective, store, part, config.steps, config.evaluations, config.learning_rate)

    def _train(
        self,
        objective: Objective,
        store: CheckpointStore,
        part: Step | None,
        steps: int,
        evaluations: int,
        learning_rate: float,
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        from stillhouse.pretraining.trainer import train

        return train(
            self.config,
            objective=objective,
            recipe=self.recipe,
            vocabulary=self.vocabulary,
            corpus_dir=self.corpus_dir,
            store=store,
            steps=steps,
            evaluations=evaluations,
            learning_rate=learning_rate,
            step=part,
        )

    def _fit_head(self, teacher: Any, store: CheckpointStore, step: Step | None) -> float:
        """Train the teacher's new head, tied to its embeddings, with all else as it is; the held-out perplexity."""
        import torch

        from stillhouse.pretraining.trainer import LanguageLoss

        config = self.config
        objective = LanguageLoss(teacher, head_only=True)
        parts = objective.model.parts
        counts = self._token_counts(teacher.config.vocab_size)
        with torch.no_grad():
            # From predicting each token as often as it occurs, from what the encoder says of the position.
            dense = teacher.get_submodule(parts.transform)
            dense.weight.copy_(torch.eye(len(dense.weight)))
            dense.bias.zero_()
            teacher.get_parameter(parts.bias).copy_(torch.log((counts + 1) / (counts.sum() + len(counts))))
        part = _Part(step, 0, config.head_steps + config.steps) if step else None
        metrics, _ = self._train(objective, store, part, config.head_steps, 1, _HEAD_LEARNING_RATE)
        _log.info("the teacher's new head: held-out perplexity %.1f", metrics["perplexity"])
        return metrics["perplexity"]

    def _token_counts(self, vocabulary: int) -> torch.Tensor:
        """How often each token stands in the corpus's first file [v]."""
        import torch

        from stillhouse.pretraining.shards import read_shard, shard_paths

        shard = read_shard(shard_paths(self.corpus_dir, "train")[0])
        return torch.bincount(torch.tensor(shard.tokens), minlength=vocabulary)

    def _dropout(self) -> dict[str, Any]:
        own = checkpoints.load_config(parse_reference(self.config.teacher, "teacher"), "teacher")
        return {name: getattr(own, name) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}

    def _check_length(self, model: Any, parameter: str) -> None:
        limit, length = position_limit(model.config), self.config.sequence_length
        if limit and length > limit:
            what = f"{length} exceeds the {limit} positions of the {parameter}."
            raise InputError(Problem("sequence_length", what, f"Give at most {limit}."))

    def key(self) -> str:
        """Of the checkpoints: all that determines the training."""
        return training_key("pretrain", self.config, inputs=self.inputs, checkpoints=self.identities)

    def manifest(self, model: PreTrainedModel, metrics: dict[str, float]) -> ModelManifest:
        config = self.config
        return ModelManifest(
            producer="pretrain",
            inputs=self.inputs,
            name=config.name,
            task="pretraining",
            recipe=_RECIPES[config.objective],
            family=model.config.model_type,
            label_names=[],
            parameters=checkpoints.parameter_count(model),
            max_length=config.sequence_length,
            hyperparameters={**hyperparameters(config), **self.facts},
            metrics=metrics,
        )

    def save(
        self, model: PreTrainedModel, output_dir: Path, history: list[dict[str, Any]], manifest: ModelManifest
    ) -> None:
        checkpoints.save_model(model, output_dir)
        self.tokenizer.save_pretrained(output_dir)
        (output_dir / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
        manifest.save(output_dir)
