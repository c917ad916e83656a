"""What the papers argue, measured here: seven tables, each beside the paper's numbers.

    python benchmarks/papers.py [--budget MINUTES] [--output FOLDER] [--docs] [--scale laptop|gpu|quick] [PART ...]

    parameters    1. parameters of BERT, DistilBERT and ALBERT, counted on the meta device; what factorisation and
                     sharing save
    speed         2. DistilBERT-base against BERT-base, random weights, the same inputs, one process, by turns
    sentences     3. trained on next-sentence prediction or on sentence order: what each knows of the other
    ablation      4. DistilBERT's triple loss with each loss removed in turn; copied against random layers
    sharing       5. ALBERT sharing all, attention, FFN or nothing
    sst2          6. what two students keep of a MiniLM teacher's accuracy on SST-2
    compression   7. INT8 and pruning: speed and accuracy; uses the models of `sst2`, and trains them where they are
                     absent

Without PART all of them, in that order. `--budget` are minutes for each part (by default 60, `sst2` 120): steps or
epochs are scaled down to fit, which the table says. Trainings are kept under the state folder (`STILLHOUSE_HOME`, else
./.stillhouse) by all that determines them: what is there is not done again, and one that was cut off continues from its
last checkpoint.

Writes PART.md, PART.json and PART.svg to FOLDER (by default papers/ in the state folder). With `--docs` they go into
docs/science.md and docs/science/ as well. `--scale quick` shrinks everything, to try the script; its figures mean
nothing. `--scale gpu` is larger than two cores can do in days: it takes hours on a GPU.

The corpus and SST-2 are looked for in `../shared/data`; what needs them is left out with a word where they are absent.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

from papers_study import DATA, MINILM, Study

from stillhouse.state import home

PARTS = {
    "parameters": "papers_sizes",
    "speed": "papers_sizes",
    "sentences": "papers_pretraining",
    "ablation": "papers_pretraining",
    "sharing": "papers_pretraining",
    "sst2": "papers_sst2",
    "compression": "papers_compression",
}
"""Module of each part; its function has the part's name."""
NEEDS_DATA = ("sentences", "ablation", "sharing", "sst2", "compression")
MINUTES = {"sst2": 120.0}
"""Budget of each part where it is not 60 minutes."""


def _bert(layers: int, width: int, positions: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "max_position_embeddings": positions,
    }


def _common(
    length: int, batch: int, rate: float, *, tokenizer: str, documents: int = 0, rows: int, **pretraining: Any
) -> dict[str, Any]:
    """What the three parts that pretrain have in common; `pretraining` are more settings of it."""
    return {
        "pretraining": {"sequence_length": length, "batch_size": batch, "learning_rate": rate, **pretraining},
        "tokenizer": tokenizer,
        "documents": documents,
        "validation_fraction": 0.06,
        "probe_steps": [5, 25],
        "test_rows": 2000,
        "rows": rows,
        "evaluation_rows": 0,
        "epochs": 2.0,
        "learning_rate": 2e-4,
    }


def _student(layers: int, width: int, positions: int, heads: int = 0) -> dict[str, int]:
    return {"n_layers": layers, "dim": width, "n_heads": heads or width // 64, "hidden_dim": 4 * width,
            "max_position_embeddings": positions}  # fmt: skip


def _wordpiece(size: int) -> str:
    return f"train://wordpiece?vocab_size={size}"


LAPTOP: dict[str, dict[str, Any]] = {
    "parameters": {},
    "speed": {"shapes": [[1, 128], [8, 128], [1, 32]], "rounds": 7},
    "sentences": {
        # What SOP learns in so few steps drowns in the masked words' gradients, and in the masks themselves.
        **_common(256, 16, 1e-4, tokenizer=MINILM, rows=0, mask_probability=0.02, sentence_weight=50.0),
        "model": MINILM,
        "validation_fraction": 0.15,
        "test_rows": 4000,
        "steps": 20000,
        "seeds": [1],
    },
    "ablation": {
        **_common(64, 32, 5e-4, tokenizer=MINILM, rows=5000),
        "model": MINILM,
        "teacher_steps": 2000,
        "student": _student(3, 384, 512, heads=12),
        "steps": 1000,
        "seeds": [1, 2, 3],
    },
    "sharing": {
        **_common(128, 32, 1e-3, tokenizer=_wordpiece(8192), rows=10000),
        "model": _bert(4, 128, 128),
        "objective": "mlm",
        "steps": 6000,
        "seeds": [1],
    },
    "sst2": {
        "rows": 20000,
        "evaluation_rows": 0,
        "documents": 0,
        "validation_fraction": 0.02,
        "seeds": [1, 2, 3],
        "teacher_epochs": 2.0,
        "student_epochs": 3.0,
        "albert_epochs": 7.0,
        "epoch_scale": 0.76,  # so that three seeds take two hours on two cores
        "sequence_length": 64,
        "wiki_batch_size": 32,
        "wiki_steps": 2000,
        "wiki_share": 0.2,
        "head_steps": 200,
        "probe_steps": [2, 12],
    },
    "compression": {
        "length": 128,
        "rounds": 7,
        "precisions": ["fp32", "int8", "int8-static"],
        "prune": {"heads": 0.33, "ffn": 0.5, "epochs": 2.0},
    },
}
_BASE = {**_common(512, 128, 3e-4, tokenizer=_wordpiece(30000), rows=67349), "model": _bert(12, 768, 512),
         "learning_rate": 5e-5, "epochs": 3.0, "seeds": [1, 2, 3]}  # fmt: skip
GPU: dict[str, dict[str, Any]] = {
    **LAPTOP,
    "sentences": {**_BASE, "steps": 60000},
    "ablation": {**_BASE, "student": _student(6, 768, 512), "teacher_steps": 60000, "steps": 20000},
    "sharing": {**_BASE, "objective": "mlm+sop", "steps": 60000},
    "sst2": {**LAPTOP["sst2"], "rows": 67349, "wiki_steps": 50000, "wiki_batch_size": 128, "sequence_length": 128,
             "epoch_scale": 1.0},
}  # fmt: skip
_TINY = {**_common(64, 8, 1e-3, tokenizer=_wordpiece(400), documents=400, rows=64), "model": _bert(2, 64, 64),
         "probe_steps": [1, 3], "test_rows": 32, "evaluation_rows": 64, "epochs": 1.0}  # fmt: skip
QUICK: dict[str, dict[str, Any]] = {
    "parameters": {},
    "speed": {"shapes": [[1, 16]], "rounds": 2},
    "sentences": {**_TINY, "steps": 6, "seeds": [1]},
    "ablation": {**_TINY, "student": _student(1, 64, 64), "teacher_steps": 4, "steps": 3, "seeds": [1, 2]},
    "sharing": {**_TINY, "objective": "mlm+sop", "steps": 4, "seeds": [1]},
    "sst2": {**LAPTOP["sst2"], "rows": 64, "evaluation_rows": 32, "documents": 400, "seeds": [1], "teacher_epochs": 1.0,
             "student_epochs": 1.0, "albert_epochs": 1.0, "epoch_scale": 1.0, "sequence_length": 32,
             "wiki_batch_size": 4, "wiki_steps": 3, "head_steps": 2, "probe_steps": [1, 2]},
    "compression": {**LAPTOP["compression"], "length": 16, "rounds": 2},
}  # fmt: skip
SCALES = {"laptop": LAPTOP, "gpu": GPU, "quick": QUICK}


def study_of(part: str, given: argparse.Namespace) -> Study:
    """The part, as it was asked for."""
    minutes = given.budget if given.budget is not None else MINUTES.get(part, 60.0)
    state = home() / "papers"
    output = given.output or state / "tables"
    study = Study(part, SCALES[given.scale][part], minutes, state, output, given.docs)
    if part == "compression":
        study.sibling = study_of("sst2", given)
    return study


def main() -> int:
    """Run the parts named on the command line, or all; 1 where a claim fails, unless only the script is tried."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="for each part")
    parser.add_argument("--output", type=Path, metavar="FOLDER")
    parser.add_argument("--docs", action="store_true", help="write docs/science.md too")
    parser.add_argument("--scale", choices=SCALES, default="laptop")
    given = parser.parse_args()
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if given.budget is not None and not given.budget > 0:
        parser.error("--budget: give minutes above 0")
    if given.docs and given.scale == "quick":
        parser.error("--docs: the figures of `--scale quick` mean nothing")
    failed = 0
    for part in given.parts or PARTS:
        if part in NEEDS_DATA and not DATA.is_dir():
            print(f"{part}: left out, since the public data sets are not at {DATA}.", file=sys.stderr)
            continue
        study = study_of(part, given)
        print(f"\n== {part}, {study.minutes:g} minutes at most", flush=True)
        begin = time.monotonic()
        getattr(importlib.import_module(PARTS[part]), part)(study)
        if study.sibling is not None:
            study.scaled += [f"{entry} (`{study.sibling.part}`)" for entry in study.sibling.scaled]
        study.write(time.monotonic() - begin)
        for entry in study.scaled:
            print(f"       scaled {entry}", flush=True)
        print(f"       {study.output / part}.md", flush=True)
        failed += sum(not claim["holds"] for claim in study.claims)
    return 1 if failed and given.scale != "quick" else 0


if __name__ == "__main__":
    sys.exit(main())
