"""Part `sst2` of `papers.py`: what students keep of a teacher's accuracy; and its models, for `compression` too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from papers_study import DATA, MINILM, Study, Told, accuracy_on_test, mean_and_spread, precision

from stillhouse.artifacts import ModelManifest
from stillhouse.data.config import DataConfig
from stillhouse.data.prepare import prepare_dataset
from stillhouse.pretraining import CorpusConfig, PretrainConfig, prepare_corpus, pretrain
from stillhouse.tasks import get_task
from stillhouse.training import DistillConfig, FinetuneConfig, PruneSettings
from stillhouse.training.steps import distill, finetune

LAYERS = "2,4,6"
ALBERT = "teacher://albert?layer_sharing=ffn"
ALBERT_SIZES = {"embedding_size": 112, "layers": 3}
"""Three layers with attention of their own: 29% of MiniLM's parameters, half of them for its 30,522 words."""
ROLES = {
    "teacher": "MiniLM teacher, 6 layers",
    "student": "3 layers, distilled on wiki_en, then on the task",
    "task": "3 layers, distilled on the task alone",
    "albert": "ALBERT, factorised from the teacher",
}


def dataset(study: Study) -> Path:
    """SST-2 as a dataset artifact, of as many rows as the study's settings say."""
    key = {"rows": study.settings["rows"], "evaluation": study.settings["evaluation_rows"], "seed": 42}

    def make(content: Path) -> None:
        schema = get_task("classification").schema(text_column="sentence", label_column="label")
        config = DataConfig(
            task="classification", schema=schema, data=str(DATA / "sst2/train.tsv"),
            validation_data=str(DATA / "sst2/dev.tsv"), test_data=str(DATA / "sst2/test.tsv"),
            max_train_rows=key["rows"], max_validation_rows=key["evaluation"], max_test_rows=key["evaluation"],
            seed=key["seed"],
        )  # fmt: skip
        prepare_dataset(config, content, fingerprint="")

    return study.artifact("sst2", key, make) / "content"


def corpus(study: Study, tokenizer: str) -> Path:
    """wiki_en as a corpus artifact, of as many documents as the study's settings say."""
    plan = study.settings
    key = {"tokenizer": tokenizer, "documents": plan["documents"], "validation_fraction": plan["validation_fraction"]}

    def make(content: Path) -> None:
        config = CorpusConfig(
            corpus=str(DATA / "wiki_en/docs.jsonl"), tokenizer=tokenizer, max_documents=plan["documents"],
            validation_fraction=plan["validation_fraction"],
        )  # fmt: skip
        prepare_corpus(config, output_dir=content, step=Told("corpus"))

    return study.artifact("corpus", key, make) / "content"


def _trained(study: Study, name: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """A model artifact, which is another one in another precision."""
    return study.artifact(name, {**key, "precision": precision()}, make) / "content"


def pretrained(study: Study, name: str, corpus_dir: Path, **settings: Any) -> Path:
    """A pretrained model artifact."""

    def make(content: Path) -> None:
        config = PretrainConfig(name=name, checkpoint_dir=study.checkpoints, **settings)
        pretrain(config, corpus_dir=corpus_dir, output_dir=content, step=Told(name))

    return _trained(study, f"pretrained-{name}", {**settings, "corpus": corpus_dir.parent.name}, make)


def seconds_per_step(study: Study, name: str, corpus_dir: Path, **settings: Any) -> float:
    """What an optimizer step of a pretraining takes here."""
    first, steps = study.settings["probe_steps"]

    def make() -> dict[str, Any]:
        folder = study.state / "probe" / f"{name}-{time.time_ns()}"
        few = {**settings, "steps": steps, "evaluations": 1, "head_steps": 1}
        watch = Told(f"{name}, probe")
        config = PretrainConfig(name=name, **few)
        pretrain(config, corpus_dir=corpus_dir, output_dir=folder, step=watch)
        return {"seconds_per_step": watch.seconds_per_step(first)}

    key = {**settings, "corpus": corpus_dir.parent.name, "steps": [first, steps], "precision": precision()}
    return float(study.result(f"probe-{name}", key, make)["seconds_per_step"])


def tuned(
    study: Study, name: str, checkpoint: str, data: Path, *, teacher: Path | None = None, **settings: Any
) -> Path:
    """A model fine-tuned on the data, or made from the teacher."""

    def make(content: Path) -> None:
        config = FinetuneConfig(name=name, checkpoint=checkpoint, checkpoint_dir=study.checkpoints, **settings)
        finetune(config, dataset_dir=data, teacher_dir=teacher, output_dir=content, step=Told(name))

    key = {**settings, "checkpoint": _identity(checkpoint), "data": data.parent.name,
           "teacher": teacher and teacher.parent.name}  # fmt: skip
    return _trained(study, f"tuned-{name}", key, make)


def distilled(
    study: Study, teacher: Path, student: Path | str, *, prune: dict[str, float] | None = None, **settings: Any
) -> Path:
    """A student distilled from the teacher on the data of the study, and pruned where `prune` says how much."""
    data = dataset(study)
    given = {**_student_settings(study), **settings}

    def make(content: Path) -> None:
        extra: dict[str, Any] = {}
        if prune:
            extra["pruning"] = PruneSettings(**prune)
        if str(student) == "teacher://":
            extra["layers"] = LAYERS
        config = DistillConfig(name="student", student=str(student), checkpoint_dir=study.checkpoints, **given, **extra)
        distill(config, dataset_dir=data, teacher_dir=teacher, output_dir=content, step=Told("student"))

    key = {**given, "student": _identity(str(student)), "teacher": teacher.parent.name, "data": data.parent.name,
           "prune": prune}  # fmt: skip
    return _trained(study, "student", key, make)


def _identity(checkpoint: str) -> str:
    """A checkpoint's name in a cache key: that of a folder here does not depend on where the state folder is."""
    path = Path(checkpoint)
    return path.parent.name if path.is_dir() else checkpoint


def _student_settings(study: Study) -> dict[str, Any]:
    plan = study.settings
    return {"epochs": plan["student_epochs"] * _epoch_scale(study), "learning_rate": 1e-4, "seed": plan["seeds"][0]}


def _albert_settings(study: Study) -> dict[str, Any]:
    return {"epochs": study.settings["albert_epochs"] * _epoch_scale(study), "learning_rate": 1e-4, **ALBERT_SIZES}


def _teacher_settings(study: Study) -> dict[str, Any]:
    return {"epochs": study.settings["teacher_epochs"], "learning_rate": 5e-5}


def _epoch_scale(study: Study) -> float:
    """What the epochs of the students and of ALBERT are multiplied by, for all seeds to fit into the budget."""
    scale = min(1.0, max(0.25, study.settings["epoch_scale"] * study.minutes / 120))
    if scale < 1:
        study.scale_down(f"epochs of the students and of ALBERT: times {scale:g}")
    return float(scale)


def wiki_student(study: Study) -> Path:
    """Three layers of the teacher, distilled on wiki_en by the triple loss; before any task."""
    plan = study.settings
    texts = corpus(study, MINILM)
    given = {"model": "teacher://", "objective": "triple", "teacher": MINILM, "layers": LAYERS,
             "sequence_length": plan["sequence_length"], "batch_size": plan["wiki_batch_size"], "learning_rate": 2e-4,
             "head_steps": plan["head_steps"]}  # fmt: skip
    each = seconds_per_step(study, "wiki", texts, **given)
    steps = study.fit("steps on wiki_en", plan["wiki_steps"], each, study.minutes * plan["wiki_share"], least=2)
    return pretrained(study, "wiki", texts, **given, steps=steps)


def prepared_models(study: Study) -> dict[str, Path]:
    """Teacher, both students and the ALBERT of the first seed, and the student before the task."""
    return models_of(study, study.settings["seeds"][0])


def models_of(study: Study, seed: int) -> dict[str, Path]:
    """The models of one seed."""
    data = dataset(study)
    wiki = wiki_student(study)
    teacher = tuned(study, "teacher", MINILM, data, **_teacher_settings(study), seed=seed)
    return {
        "wiki": wiki,
        "teacher": teacher,
        "student": distilled(study, teacher, wiki, seed=seed),
        "task": distilled(study, teacher, "teacher://", seed=seed),
        "albert": tuned(study, "albert", ALBERT, data, teacher=teacher, **_albert_settings(study), seed=seed),
    }


def sst2(study: Study) -> None:
    """6. What two small students keep of a MiniLM teacher's accuracy on SST-2."""
    data = dataset(study)
    accuracies: dict[str, list[float]] = {role: [] for role in ROLES}
    sizes: dict[str, int] = {}
    for seed in study.settings["seeds"]:
        for role, folder in models_of(study, seed).items():
            if role in ROLES:
                found = study.result(
                    f"accuracy-{role}", {"model": folder.parent.name, "data": data.parent.name},
                    lambda folder=folder: {"accuracy": accuracy_on_test(folder, data)},
                )  # fmt: skip
                accuracies[role].append(found["accuracy"])
                sizes[role] = ModelManifest.load(folder).parameters
                study.say(f"seed {seed}, {role}: {found['accuracy']:.4f}")
    kept = {
        role: [own / its for own, its in zip(accuracies[role], accuracies["teacher"], strict=True)] for role in ROLES
    }
    study.table(
        ["Model", "Parameters", "of the teacher's", "SST-2 test", "of the teacher's"],
        [[title, f"{sizes[role] / 1e6:.1f}M", f"{sizes[role] / sizes['teacher']:.0%}",
          mean_and_spread(accuracies[role]), f"{statistics.fmean(kept[role]):.1%}"] for role, title in ROLES.items()],
    )  # fmt: skip
    study.figures = {"accuracy": accuracies, "kept": kept, "parameters": sizes}
    study.claim("share of the teacher's accuracy that the 3-layer student keeps, wiki_en first (97% of BERT-base in "
                "Sanh et al. 2019, table 1)", statistics.fmean(kept["student"]), low=0.98)  # fmt: skip
    study.claim(
        "share of the teacher's accuracy that the ALBERT student keeps", statistics.fmean(kept["albert"]), low=0.95
    )
    study.claim(
        "share of the teacher's parameters that the ALBERT student has", sizes["albert"] / sizes["teacher"], high=0.3
    )
    study.notes.append(
        f"{study.settings['rows']:,} training rows, {len(study.settings['seeds'])} seeds, a teacher of its own for "
        "each, the same distillation on wiki_en for all; mean and standard deviation."
    )
    study.bars("sst2", "SST-2 test accuracy", ["teacher", "wiki_en + task", "task alone", "ALBERT"],
               {"mean": [statistics.fmean(accuracies[role]) for role in ROLES]}, "accuracy")  # fmt: skip
