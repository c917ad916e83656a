"""What the parts of `papers.py` share: a cache, a budget, tables, plots, and a place in docs/science.md."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from stillhouse import __version__
from stillhouse.artifacts import digest_json
from stillhouse.comparison.report import markdown_table
from stillhouse.evaluation.machine import available_cores, describe_machine
from stillhouse.plotting import COLOURS, canvas, save_figure
from stillhouse.progress import Step

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
SCIENCE = ROOT / "docs" / "science.md"
MINILM = "minilm://"
"""A small BERT that has learned English already: the parts that must begin with one take it where there is no GPU."""


class Told(Step):
    """A step that says on standard error how far it is, every few seconds."""

    def __init__(self, name: str, every: float = 20.0) -> None:
        super().__init__(name)
        self._every = every
        self._last = time.monotonic()
        self._times: dict[int, float] = {}

    def seconds_per_step(self, first: int) -> float:
        """What each step took after the first ones, which are slower."""
        last = max(self._times)
        return (self._times[last] - self._times[first]) / (last - first)

    def progress(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        self._times.setdefault(done, now)
        if now - self._last >= self._every:
            self._last = now
            print(f"       {self.id}: {done:,} of {total:,}{f', {note}' if note else ''}", file=sys.stderr, flush=True)


@dataclass
class Study:
    """One part: its settings, what it found, and where that is kept."""

    part: str
    settings: Mapping[str, Any]
    """Of the chosen scale; part of every cache key."""
    minutes: float
    """The budget."""
    state: Path
    output: Path
    docs: bool
    """Whether what is found also goes into docs/science.md."""
    sibling: Study | None = None
    """Another part, whose models this one uses."""
    scaled: list[str] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Tell whoever waits."""
        print(f"       {text}", flush=True)

    # --- what takes long is done once ---

    def result(self, name: str, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The JSON document that `make` returns, kept under the state folder by name and key."""
        path = self.state / "results" / f"{self.part}-{name}-{digest_json(dict(key))[:12]}.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        begin = time.monotonic()
        with self.quiet():
            found = make()
        found["seconds"] = round(time.monotonic() - begin, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
        return found

    def artifact(self, name: str, key: Mapping[str, Any], make: Callable[[Path], Any]) -> Path:
        """The folder that `make` fills, kept by name and key over all parts. A training that was cut off continues."""
        folder = self.state / "artifacts" / f"{name}-{digest_json(dict(key))[:12]}"
        if (folder / "done").is_file():
            return folder
        self.say(f"{name}: made in {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        begin = time.monotonic()
        content = folder / "content"
        folder.mkdir(parents=True)
        with self.quiet():
            make(content)
        (folder / "done").write_text(f"{time.monotonic() - begin:.1f}\n", encoding="utf-8")
        return folder

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What trainings print goes to the end of papers.log."""
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        disable_progress_bar()
        set_verbosity_error()  # of heads that are fresh, or not used, as they are to be
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of torchvision, which nothing here needs
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "papers.log").open("a", encoding="utf-8") as log, redirect_stdout(log):
            yield

    @property
    def checkpoints(self) -> str:
        """Where trainings keep what they continue from."""
        return str(self.state / "checkpoints")

    def fit(self, what: str, wanted: int, seconds_each: float, minutes: float, least: int = 1) -> int:
        """As many of `wanted` units as fit the minutes; says so where it is fewer."""
        fitting = max(least, min(wanted, int(60 * minutes / seconds_each)))
        if fitting < wanted:
            self.scale_down(f"{what}: {fitting:,} of {wanted:,}, to fit {minutes:.0f} minutes")
        return fitting

    def scale_down(self, what: str) -> None:
        """Say what is smaller than asked, for the budget's sake; once, however often it is used."""
        entry = f"to the budget of {self.minutes:g} minutes: {what}"
        if entry not in self.scaled:
            self.scaled.append(entry)

    # --- what is found ---

    def claim(self, name: str, value: float, *, low: float | None = None, high: float | None = None) -> None:
        """A figure beside its bound."""
        good = (low is None or value >= low) and (high is None or value <= high)
        bound = f"at least {low:g}" if low is not None else f"at most {high:g}"
        self.claims.append({"name": name, "value": value, "bound": bound, "holds": good})
        print(f"{'holds' if good else 'FAILS'}  {name}: {value:.4g} ({bound})", flush=True)

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
        """A table; all columns but the first ones hold numbers."""
        numbers = [index >= text_columns for index in range(len(titles))]
        self.tables.append(markdown_table(titles, rows, numbers))
        print(f"\n{self.tables[-1]}", flush=True)

    def bars(
        self, name: str, title: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], unit: str
    ) -> None:
        """A plot of grouped bars, as SVG; None leaves a bar out."""
        self.output.mkdir(parents=True, exist_ok=True)
        with canvas(7.2, 3.8) as (figure, axes):
            width = 0.8 / len(series)
            for index, (label, values) in enumerate(series.items()):
                at = [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))]
                pairs = [(x, y) for x, y in zip(at, values, strict=True) if y is not None]
                bars = axes.bar([x for x, _ in pairs], [y for _, y in pairs], width * 0.92,
                                color=COLOURS[index % len(COLOURS)], label=label)  # fmt: skip
                axes.bar_label(bars, fmt="%.3g", fontsize=8)
            axes.set_xticks(range(len(groups)), groups)
            axes.set_ylabel(unit)
            axes.set_title(title, fontsize=11)
            if len(series) > 1:
                axes.legend(frameon=False, fontsize=9)
            axes.grid(visible=False, axis="x")
            save_figure(figure, self.output / f"{name}.svg")
        self.plots.append(f"{name}.svg")

    def write(self, seconds: float) -> None:
        """Write PART.md, PART.json and the plots; with `docs`, also docs/science.md between its marks."""
        self.output.mkdir(parents=True, exist_ok=True)
        machine = describe_machine(available_cores()) | _gpu()
        body = {
            "part": self.part,
            "settings": dict(self.settings),
            "minutes": self.minutes,
            "seconds": round(seconds, 1),
            "scaled": self.scaled,
            "claims": self.claims,
            "figures": self.figures,
            "machine": machine,
            "date": date.today().isoformat(),
            "stillhouse": __version__,
        }
        text = self._markdown(machine)
        (self.output / f"{self.part}.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        (self.output / f"{self.part}.md").write_text(text, encoding="utf-8")
        if self.docs:
            folder = SCIENCE.with_suffix("")
            folder.mkdir(exist_ok=True)
            for name in [*self.plots, f"{self.part}.json"]:
                if (self.output / name).resolve() != (folder / name).resolve():
                    shutil.copyfile(self.output / name, folder / name)
            SCIENCE.write_text(
                with_block(SCIENCE.read_text(encoding="utf-8"), self.part, text.replace("](", "](science/")),
                encoding="utf-8",
            )

    def _markdown(self, machine: Mapping[str, Any]) -> str:
        parts = list(self.tables)
        parts += [f"![{Path(name).stem}]({name})\n" for name in self.plots]
        parts += [f"- {'Holds' if c['holds'] else '**Fails**'}: {c['name']}: {c['value']:.4g} ({c['bound']})."
                  for c in self.claims]  # fmt: skip
        parts += [f"- {note}" for note in self.notes]
        parts += [f"- Scaled {entry}." for entry in self.scaled]
        gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
        parts.append(
            f"- {date.today().isoformat()}, stillhouse {__version__}, {machine['processor']}, {machine['threads']} "
            f"threads{gpu}."
        )
        return "\n".join(parts) + "\n"


def precision() -> str:
    """Of training: what `auto` comes to here, as part of the keys."""
    from stillhouse.training.hardware import uses_bf16

    return "bf16" if uses_bf16("auto") else "fp32"


def _gpu() -> dict[str, str]:
    """The GPU that trainings ran on, where there is one."""
    import torch

    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def with_block(document: str, part: str, text: str) -> str:
    """The document with `text` between the part's marks.

    Raises:
        ValueError: the document has no such marks.
    """
    begin, end = f"<!-- papers:{part} -->\n", f"<!-- /papers:{part} -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no marks {begin.strip()} … {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean, and standard deviation where there are several."""
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


@contextmanager
def one_setting_of_threads(threads: int) -> Iterator[None]:
    """PyTorch on that many threads, and as before afterwards: small trainings set it to one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def paired_turns(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, seconds: float = 0.5, warm: int = 2
) -> dict[str, list[float]]:
    """Median seconds of each call in each round, measured in one process by turns.

    Another one begins each round, so that none always follows the heaviest.

    Args:
        calls: what to time, by name.
        rounds: turns of each.
        seconds: how long a turn takes about.
        warm: calls at the start of a turn that are not counted.
    """
    names = list(calls)
    counts = {}
    for name in names:
        calls[name]()
        begin = time.perf_counter()
        calls[name]()
        counts[name] = max(3, int(seconds / (time.perf_counter() - begin)))
    found: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds):
        shift = round_ % len(names)
        for name in [*names[shift:], *names[:shift]]:
            for _ in range(warm):
                calls[name]()
            taken = []
            for _ in range(counts[name]):
                begin = time.perf_counter()
                calls[name]()
                taken.append(time.perf_counter() - begin)
            found[name].append(statistics.median(taken))
    return found


def ratio(times: Mapping[str, Sequence[float]], slow: str, fast: str) -> float:
    """How many times as fast: the median over rounds of the quotient within a round."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def accuracy_on_test(model_dir: Path, dataset_dir: Path) -> float:
    """Share of the test split that a model artifact classifies rightly, in PyTorch."""
    import torch

    from stillhouse.artifacts import ModelManifest
    from stillhouse.data.dataset import read_split
    from stillhouse.models import checkpoints
    from stillhouse.tasks import get_task

    manifest = ModelManifest.load(model_dir)
    task = get_task(manifest.task)
    reference = checkpoints.reference_for(model_dir)
    tokenizer = checkpoints.load_tokenizer(reference, "model")
    head = task.head_config(manifest.label_names)
    model = checkpoints.load_model(reference, "model", task.auto_class, head).eval()
    rows = read_split(dataset_dir, "test")
    order = sorted(range(len(rows["text"])), key=lambda row: len(rows["text"][row]))
    right = 0
    with one_setting_of_threads(available_cores()), torch.inference_mode():
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            encoded = tokenizer([rows["text"][row] for row in batch], padding=True, truncation=True,
                                max_length=manifest.max_length, return_tensors="pt",
                                return_token_type_ids=False)  # fmt: skip
            predicted = model(**encoded).logits.argmax(dim=1)
            right += int((predicted == torch.tensor([rows["label"][row] for row in batch])).sum())
    return right / len(order)
