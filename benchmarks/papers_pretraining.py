"""Parts of `papers.py` that pretrain small models on wiki_en: `sentences`, `ablation` and `sharing`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from papers_sst2 import corpus, dataset, pretrained, seconds_per_step, tuned
from papers_study import Study, accuracy_on_test, mean_and_spread

from stillhouse.artifacts import ModelManifest
from stillhouse.pretraining import perplexity, sentence_accuracy

NOT_OURS = "Small models and a short training: what is to be compared with the paper is the direction, not the value."


def _query(fields: dict[str, Any]) -> str:
    return "&".join(f"{name}={value}" for name, value in fields.items())


def _model(model: dict[str, Any] | str) -> str:
    """A BERT to begin with: a checkpoint, or random weights of a shape."""
    return model if isinstance(model, str) else f"scratch://bert?{_query(model)}"


def sentences(study: Study) -> None:
    """3. What training on one sentence task teaches of the other."""
    plan = study.settings
    texts = corpus(study, plan["tokenizer"])
    tasks = {"nsp": "mlm+nsp", "sop": "mlm+sop"}
    given = {"model": _model(plan["model"]), **plan["pretraining"]}
    each = seconds_per_step(study, "sentences", texts, **given, objective="mlm+sop")
    runs = len(tasks) * len(plan["seeds"])
    steps = study.fit("steps of each model", plan["steps"], each, study.minutes * 0.95 / runs, least=2)
    paper = {("nsp", "nsp"): 90.5, ("nsp", "sop"): 52.0, ("sop", "nsp"): 78.9, ("sop", "sop"): 86.5}
    found: dict[tuple[str, str], list[float]] = {pair: [] for pair in paper}
    pairs: dict[str, int] = {}
    for seed in plan["seeds"]:
        for trained, objective in tasks.items():
            model = pretrained(
                study, f"sentences-{trained}", texts, **given, objective=objective, steps=steps, seed=seed
            )
            for asked in tasks:

                def measure(model: Path = model, asked: str = asked) -> dict[str, Any]:
                    return sentence_accuracy(model, texts, task=asked, rows=plan["test_rows"], seed=1)._asdict()

                key = {"model": model.parent.name, "rows": plan["test_rows"]}
                answer = study.result(f"{asked}-accuracy", key, measure)
                pairs[asked] = answer["pairs"]
                found[trained, asked].append(answer["value"])
                study.say(f"seed {seed}: trained on {trained}, asked {asked}: {found[trained, asked][-1]:.3f}")
    study.table(
        ["Trained on", "NSP accuracy", "in the paper", "SOP accuracy", "in the paper"],
        [[trained.upper(), *(cell for asked in tasks
                             for cell in (mean_and_spread([100 * v for v in found[trained, asked]], 1),
                                          f"{paper[trained, asked]:.1f}"))] for trained in tasks],
    )  # fmt: skip
    mean = {pair: statistics.fmean(values) for pair, values in found.items()}
    study.figures = {f"{trained} on {asked}": values for (trained, asked), values in found.items()}
    study.claim("accuracy on SOP: SOP-trained less NSP-trained", mean["sop", "sop"] - mean["nsp", "sop"], low=0.05)
    study.claim("accuracy on SOP of the NSP-trained", mean["nsp", "sop"], high=0.55)
    study.claim("accuracy on NSP of the SOP-trained", mean["sop", "nsp"], low=0.52)
    errors = [196 * (0.25 / pairs[asked]) ** 0.5 for asked in tasks]
    study.notes += [
        "Paper: Lan et al. 2019, table 5 (ALBERT-base).",
        f"{steps:,} steps of {plan['pretraining']['batch_size']} rows of {plan['pretraining']['sequence_length']} "
        f"tokens for each. {pairs['nsp']:,} held-out pairs for NSP and {pairs['sop']:,} for SOP, half of them of "
        "either label, so that knowing nothing gives 50% "
        f"(±{errors[0]:.1f} and ±{errors[1]:.1f} points at most). {NOT_OURS}",
    ]
    study.bars("sentences", "Accuracy on sentence tasks, %", ["NSP-trained", "SOP-trained"],
               {f"asked {asked.upper()}": [100 * mean[trained, asked] for trained in tasks] for asked in tasks},
               "%")  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "triple loss, copied layers": {},
    "without distillation (CE)": {"ce_weight": 0.0},
    "without cosine": {"cosine_weight": 0.0},
    "without masked words (MLM)": {"mlm_weight": 0.0},
    "triple loss, random start": {"random": True},
}
REMOVED = {
    "triple loss, copied layers": "",
    "without distillation (CE)": "–2.96",
    "without cosine": "–1.46",
    "without masked words (MLM)": "–0.31",
    "triple loss, random start": "–3.69",
}
"""Sanh et al. 2019, table 4: change of the GLUE macro-score. Its rows name what is left: that of –2.96 has an empty
place for CE and reads ∅ – cosine – MLM, that of –1.46 has one for cosine, and that of –0.31 one for MLM."""


def ablation(study: Study) -> None:
    """4. Each loss removed in turn, and random against copied layers."""
    plan = study.settings
    texts = corpus(study, plan["tokenizer"])
    data = dataset(study)
    minutes = study.minutes
    teacher_given = {"model": _model(plan["model"]), "objective": "mlm", **plan["pretraining"]}
    each = seconds_per_step(study, "ablation-teacher", texts, **teacher_given)
    steps = study.fit("steps of the teacher", plan["teacher_steps"], each, minutes * 0.2, least=2)
    teacher = pretrained(study, "ablation-teacher", texts, **teacher_given, steps=steps)
    student_given = {"model": "teacher://", "objective": "triple", "teacher": str(teacher), **plan["pretraining"]}
    each = seconds_per_step(study, "ablation-student", texts, **student_given)
    runs = len(VARIANTS) * len(plan["seeds"])
    student_steps = study.fit("steps of each student", plan["steps"], each, minutes * 0.55 / runs, least=2)
    found: dict[str, dict[str, list[float]]] = {name: {"perplexity": [], "sst2": []} for name in VARIANTS}
    for seed in plan["seeds"]:
        for name, weights in VARIANTS.items():
            given = {**student_given, **{k: v for k, v in weights.items() if k != "random"}}
            if weights.get("random"):
                given["model"] = f"scratch://distilbert?{_query(plan['student'])}"
            model = pretrained(study, "ablation", texts, **given, steps=student_steps, seed=seed)
            entry = _perplexity_and_sst2(study, model, texts, data, seed)
            for figure, value in entry.items():
                found[name][figure].append(value)
            study.say(f"seed {seed}, {name}: perplexity {entry['perplexity']:.1f}, SST-2 {entry['sst2']:.4f}")
    of_teacher = _perplexity_and_sst2(study, teacher, texts, data, plan["seeds"][0])
    full = statistics.fmean(found["triple loss, copied layers"]["sst2"])
    study.table(
        ["Student", "Perplexity", "SST-2 test", "Change in points", "GLUE in the paper"],
        [[name, mean_and_spread(entry["perplexity"], 1), mean_and_spread(entry["sst2"]),
          "" if not REMOVED[name] else f"{100 * (statistics.fmean(entry['sst2']) - full):+.2f}", REMOVED[name]]
         for name, entry in found.items()]
        + [["the teacher", f"{of_teacher['perplexity']:.1f}", f"{of_teacher['sst2']:.4f}", "", ""]],
    )  # fmt: skip
    study.figures = {"students": found, "teacher": of_teacher}
    random = statistics.fmean(found["triple loss, random start"]["sst2"])
    study.claim("SST-2 accuracy that copied layers gain over a random start", full - random, low=0.0)
    study.notes += [
        "Paper: Sanh et al. 2019, table 4, change of the GLUE macro-score.",
        f"{len(plan['seeds'])} seeds, mean and standard deviation; {student_steps:,} steps for each student, {steps:,} "
        f"for the teacher. Fine-tuned on {plan['rows']:,} rows for {plan['epochs']:g} epochs. {NOT_OURS}",
    ]
    study.bars("ablation", "SST-2 after fine-tuning", ["all", "no CE", "no cosine", "no MLM", "random"],
               {"mean": [statistics.fmean(entry["sst2"]) for entry in found.values()]}, "accuracy")  # fmt: skip


def sharing(study: Study) -> None:
    """5. What sharing which part costs, at the same width."""
    plan = study.settings
    texts = corpus(study, plan["tokenizer"])
    data = dataset(study)
    # Average over five tasks and parameters, E = 128; Lan et al. 2019, table 4.
    paper = {"all": ("12M", 80.1, 90.3), "attention": ("64M", 81.7, 91.9), "ffn": ("38M", 80.2, 91.7),
             "none": ("89M", 81.6, 91.5)}  # fmt: skip

    def given(shared: str) -> dict[str, Any]:
        model = f"scratch://albert?layer_sharing={shared}&{_query(plan['model'])}"
        return {"model": model, "objective": plan["objective"], **plan["pretraining"]}

    each = seconds_per_step(study, "sharing", texts, **given("none"))
    runs = len(paper) * len(plan["seeds"])
    steps = study.fit("steps of each model", plan["steps"], each, study.minutes * 0.8 / runs, least=2)
    found: dict[str, dict[str, list[float]]] = {shared: {"perplexity": [], "sst2": []} for shared in paper}
    sizes = {}
    for seed in plan["seeds"]:
        for shared in paper:
            model = pretrained(study, f"sharing-{shared}", texts, **given(shared), steps=steps, seed=seed)
            entry = _perplexity_and_sst2(study, model, texts, data, seed)
            for figure, value in entry.items():
                found[shared][figure].append(value)
            sizes[shared] = ModelManifest.load(model).parameters
            study.say(f"seed {seed}, {shared}: perplexity {entry['perplexity']:.1f}, SST-2 {entry['sst2']:.4f}")
    study.table(
        ["Shared", "Parameters", "Perplexity", "SST-2 test", "Parameters in the paper", "Average", "SST-2"],
        [[shared, f"{sizes[shared] / 1e6:.2f}M", mean_and_spread(entry["perplexity"], 1),
          mean_and_spread(entry["sst2"]), paper[shared][0],
          f"{paper[shared][1]:.1f}", f"{paper[shared][2]:.1f}"]
         for shared, entry in found.items()],
    )  # fmt: skip
    study.figures = {"models": found, "parameters": sizes}
    study.claim("parameters of the model that shares all, by those of the one that shares nothing",
                sizes["all"] / sizes["none"], high=0.7)  # fmt: skip
    study.notes += [
        "Paper: Lan et al. 2019, table 4, E = 128: average of SQuAD 1.1 and 2.0, MNLI, SST-2 and RACE.",
        f"{steps:,} steps for each, the same width and depth. Fine-tuned on {plan['rows']:,} rows for "
        f"{plan['epochs']:g} epochs. {NOT_OURS}",
    ]
    study.bars("sharing", "Sharing across layers", list(found),
               {"SST-2 test": [statistics.fmean(entry["sst2"]) for entry in found.values()]}, "accuracy")  # fmt: skip


def _perplexity_and_sst2(study: Study, model: Path, texts: Path, data: Path, seed: int) -> dict[str, float]:
    """Of a pretrained model: perplexity on held-out documents, and SST-2 test accuracy after fine-tuning."""
    plan = study.settings

    def make() -> dict[str, Any]:
        longest = min(128, plan["pretraining"]["sequence_length"])
        task = tuned(study, "pretrained", str(model), data, epochs=plan["epochs"], seed=seed, max_length=longest,
                     learning_rate=plan["learning_rate"])  # fmt: skip
        return {
            "perplexity": perplexity(model, texts, rows=plan["test_rows"], seed=1),
            "sst2": accuracy_on_test(task, data),
        }

    key = {"model": model.parent.name, "data": data.parent.name, "seed": seed, "epochs": plan["epochs"],
           "learning_rate": plan["learning_rate"], "rows": plan["test_rows"]}  # fmt: skip
    found = study.result("judged", key, make)
    return {name: found[name] for name in ("perplexity", "sst2")}
