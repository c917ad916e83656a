"""Parts of `papers.py` about sizes and speed: `parameters` and `speed`."""

from __future__ import annotations

import statistics

from papers_study import Study, paired_turns, ratio

from stillhouse.comparison.counting import count
from stillhouse.comparison.subjects import parse_subject
from stillhouse.evaluation.machine import available_cores
from stillhouse.models.named import NAMED, PUBLISHED

PRETRAINING_HEADS = {"bert": "AutoModelForPreTraining", "albert": "AutoModelForPreTraining",
                     "distilbert": "AutoModelForMaskedLM"}  # fmt: skip


def _millions(count_: float) -> str:
    return f"{count_ / 1e6:.1f}M"


def _with_heads(name: str) -> int:
    """Parameters with the heads that the architecture is pretrained with, the tied word matrix counted once."""
    import torch

    from stillhouse.models import checkpoints

    config = parse_subject(name).config
    with torch.device("meta"):
        return checkpoints.parameter_count(checkpoints.build_model(config, PRETRAINING_HEADS[config.model_type]))


def parameters(study: Study) -> None:
    """1. Parameter counts on the meta device, beside the papers'."""
    counts = {name: count(parse_subject(name).config, 128, "MODEL", name) for name in NAMED}
    rows = []
    for name, found in counts.items():
        paper = PUBLISHED[name].parameters
        difference = f"{100 * (found.parameters / paper - 1):+.1f}%"
        rows.append([
            name, f"{paper / 1e6:.0f}M", _millions(found.parameters), difference, _millions(found.embedding),
            _millions(found.encoder), _millions(found.pooler), _millions(_with_heads(name)),
        ])  # fmt: skip
        study.figures[name] = {**vars(found), "paper": paper}
    study.table(
        ["Model", "Paper", "Counted", "Difference", "Embeddings", "Encoder", "Pooler", "With the heads of pretraining"],
        rows,
    )
    bert, albert = counts["bert-base"], counts["albert-base"]
    study.claim(
        "embedding parameters that factorisation saves, base size", 1 - albert.embedding / bert.embedding, low=0.8
    )
    study.claim("encoder parameters that sharing saves, base size", 1 - albert.encoder / bert.encoder, low=0.7)
    rounding = {
        "bert-base": 10,
        "bert-large": 10,
        "distilbert-base": 1,
        "albert-base": 1,
        "albert-large": 1,
        "albert-xlarge": 10,
    }
    off = [abs(unit * round(counts[name].parameters / 1e6 / unit) - PUBLISHED[name].parameters / 1e6)
           for name, unit in rounding.items()]  # fmt: skip
    study.claim("models, but for albert-xxlarge, whose count is not the paper's once rounded as there",
                sum(value > 0 for value in off), high=0)  # fmt: skip
    study.notes += [f"{name}: {PUBLISHED[name].note}" for name in NAMED if PUBLISHED[name].note]
    heads = {name: _with_heads(name) for name in ("distilbert-base", "bert-base")}
    study.notes.append(
        "Counted are embeddings, layers and pooler; the heads of pretraining are left out. That the papers leave them "
        f"out too, DistilBERT's 66M tells: with its head it would be {_millions(heads['distilbert-base'])}. BERT-base, "
        f"{_millions(heads['bert-base'])} with both of its heads, rounds to 110M either way."
    )
    study.bars(
        "parameters", "Parameters, millions", list(NAMED),
        {"paper": [PUBLISHED[name].parameters / 1e6 for name in NAMED],
         "counted": [found.parameters / 1e6 for found in counts.values()]}, "millions",
    )  # fmt: skip


def speed(study: Study) -> None:
    """2. DistilBERT-base against BERT-base: random weights, the same inputs, one process, by turns."""
    import torch
    from transformers import set_seed

    from stillhouse.models import checkpoints

    set_seed(0)
    torch.set_num_threads(available_cores())
    names = ("bert-base", "distilbert-base")
    auto_class = "AutoModelForSequenceClassification"
    models = {name: checkpoints.build_model(parse_subject(name).config, auto_class).eval() for name in names}
    rows, speedups = [], []
    with torch.inference_mode():
        for batch, length in study.settings["shapes"]:
            ids = torch.randint(1000, 30000, (batch, length))
            mask = torch.ones_like(ids)
            calls = {
                name: lambda model=model, ids=ids, mask=mask: model(input_ids=ids, attention_mask=mask)
                for name, model in models.items()
            }
            times = paired_turns(calls, rounds=study.settings["rounds"])
            by_round = [a / b for a, b in zip(times["bert-base"], times["distilbert-base"], strict=True)]
            speedups.append(ratio(times, "bert-base", "distilbert-base"))
            medians = [1000 * statistics.median(times[name]) for name in names]
            rows.append([
                f"{batch} × {length} tokens", *(f"{value:.1f} ms" for value in medians), f"{speedups[-1]:.2f}×",
                f"{min(by_round):.2f}× to {max(by_round):.2f}×", "1.63×" if batch == 1 and length == 128 else "",
            ])  # fmt: skip
            study.figures[f"{batch}x{length}"] = {"bert_ms": medians[0], "distilbert_ms": medians[1],
                                                  "speedup": speedups[-1], "by_round": by_round}  # fmt: skip
    study.table(["Input", "BERT-base", "DistilBERT-base", "Faster", "Over the rounds", "in the paper"], rows)
    sizes = {name: count(parse_subject(name).config, 8, "MODEL", name).parameters for name in names}
    smaller = 1 - sizes["distilbert-base"] / sizes["bert-base"]
    study.claim("DistilBERT-base is so many times as fast, batch 1 (Sanh et al. 2019, table 3: 1.63 on a CPU)",
                speedups[0], low=1.6)  # fmt: skip
    study.claim("DistilBERT-base has fewer parameters by this share (40% in the paper, to the nearest percent)",
                round(smaller, 2), low=0.39)  # fmt: skip
    study.notes.append(
        f"DistilBERT-base has {100 * smaller:.1f}% fewer parameters than BERT-base; the paper's 66M of 110M are 40%."
    )
    study.bars("speed", "DistilBERT-base against BERT-base", [row[0] for row in rows], {"times as fast": speedups}, "×")
