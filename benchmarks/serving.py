"""What docs/serving.md says of speed, overload, releases and faults, measured on this machine in one run.

    python benchmarks/serving.py [--quick] [--mlserver PYTHON] [--output FOLDER] [PART ...]

    throughput   texts a second at the knee: a list, beside the best in-process loop and a transformers pipeline; and
                 one text a request, beside MLServer; as it comes, and with an encoder of one thread for each core
    latency      one text at a time, beside the same in process: with `encoder_in_front`, and without; and what a call
                 of gRPC takes that does nothing
    overload     twice the knee's load for two minutes
    soak         ten minutes at 70% of the knee: memory and errors
    releases     20 changes of release under constant load from `stillhouse.client`, retries off
    faults       SIGKILL of each Python process and of the server, under load
    drain        SIGTERM under load

Without PART all of them. The model has DistilBERT-base's shape with random weights, in INT8: speed does not depend on
what it learnt. Texts are SST-2's test sentences, from `../shared/data`. Server, load and rivals share this machine's
cores, and those that are compared take turns. Where requests come at a fixed rate, what sends them has real-time
priority if it may, as if it were on another machine: else its own delays would be taken for the server's.

`--mlserver` names the Python of an environment with what MLServer's Hugging Face runtime still works with; without it
that rival is left out: `pip install torch==2.13.0 mlserver==1.7.1 mlserver-huggingface==1.7.1 transformers==4.41.2
optimum==1.21.4`. `--quick` shortens everything, to try the script.

Writes serving.json and prints, for each claim, what was measured and what is asked for.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from serving_rivals import InProcess, TransformersPipeline, echo, mlserver

from stillhouse.artifacts import PackageManifest
from stillhouse.client import Client, ServingError
from stillhouse.export.onnx import export_onnx, quantise_int8
from stillhouse.interrupts import terminable
from stillhouse.loadtest import LoadResult, find_knee, run_load, run_open_load
from stillhouse.loadtest.load import prepare_requests
from stillhouse.serving.repository import ServingOptions, set_model_version, write_repository
from stillhouse.serving.server import ServerConfig, ServerStatus, read_status, start_server, stop_folder, switch_server
from stillhouse.serving.triton import free_ports
from stillhouse.tasks import get_task

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
MODEL = "sst2"
LABELS = ["negative", "positive"]
LEVELS = (1, 2, 4, 8, 12, 16, 24, 32)
OPTIONS = ServingOptions()
MANY = ServingOptions(encoder_instances=len(os.sched_getaffinity(0)), encoder_threads=1)
"""For `throughput` and `soak`: what a user sets to whom texts a second count, and one text's latency less."""
FRONT = ServingOptions(encoder_in_front=True)
"""For `latency`: what a user sets to whom each millisecond counts."""
BOUNDED = ServingOptions(batch_rows=2, max_wait_ms=3)
"""For `overload`: what a user sets to bound the latency of a model that takes some 4 ms, for half of what it can do."""


@dataclass
class Bench:
    """What the parts share, and what they found."""

    folder: Path
    texts: list[str]
    quick: bool
    mlserver: str
    found: dict[str, Any] = field(default_factory=dict)
    faults: int = 0

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 5

    def seconds(self, full: float) -> float:
        return max(2.0, full / 10) if self.quick else full

    def claim(self, name: str, value: float, low: float | None = None, high: float | None = None) -> None:
        """Print a figure beside its bound."""
        good = (low is None or value >= low) and (high is None or value <= high)
        bound = f"at least {low:g}" if low is not None else f"at most {high:g}"
        self.faults += not good
        self.found[name] = {"value": value, "at least": low, "at most": high, "holds": good}
        print(f"{'holds' if good else 'FAILS'}  {name}: {value:.3g} ({bound})", flush=True)

    def note(self, name: str, value: Any) -> None:
        self.found[name] = value
        print(f"       {name}: {value}", flush=True)

    def knee(self, status: ServerStatus) -> int:
        """Concurrency at the knee; the ramp is measured once."""
        if "knee" not in self.found:
            steps = [(level, self.load(status, level, self.seconds(10))) for level in LEVELS]
            self.found["ramp"] = [{"concurrency": level, **result.to_dict()} for level, result in steps]
            level = find_knee(steps)
            self.found["knee"] = {"concurrency": level, "texts_per_second": dict(steps)[level].texts_per_second}
            for step, result in steps:
                print(f"       {step:>3} callers: {result.texts_per_second:6.1f} texts/s, p50 {result.p50:5.1f} ms, "
                      f"p99 {result.p99:5.1f} ms {result.errors or ''}", flush=True)  # fmt: skip
            self.note("knee", self.found["knee"])
        return int(self.found["knee"]["concurrency"])

    def load_at_knee(self, status: ServerStatus, seconds: float) -> LoadResult:
        """The knee, as the machine is now: what a shared one can do differs from hour to hour."""
        return self.load(status, self.knee(status), self.seconds(seconds))

    def load(self, status: ServerStatus, concurrency: int, seconds: float) -> LoadResult:
        return run_load(status.grpc_url, MODEL, self.texts, concurrency=concurrency, seconds=seconds)


def build(folder: Path) -> Path:
    """A checkpoint of DistilBERT-base's shape, and its INT8 package. Returns the package."""
    import torch
    from transformers import BertTokenizerFast, DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    config = DistilBertConfig(id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)})
    model = DistilBertForSequenceClassification(config).eval()
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint)
    BertTokenizerFast(
        vocab_file=str(SHARED / "vocab/bert-base-uncased-vocab.txt"),
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(checkpoint)
    task = get_task("classification")
    export_onnx(model, task, folder / "fp32.onnx")
    quantise_int8(folder / "fp32.onnx", folder / "int8.onnx")
    for name, options in (("package", OPTIONS), ("many", MANY), ("front", FRONT), ("bounded", BOUNDED)):
        write_repository(
            folder / name / "triton",
            served_name=MODEL,
            encoder=folder / "int8.onnx",
            tokenizer=checkpoint / "tokenizer.json",
            task=task,
            label_names=LABELS,
            max_length=128,
            options=options,
        )
        PackageManifest(
            producer="benchmark", name="student", served_name=MODEL, task=task.name, family="distilbert",
            precision="int8", label_names=LABELS, parameters=sum(p.numel() for p in model.parameters()), max_length=128,
            max_text_bytes=options.max_text_bytes, max_batch_size=options.max_batch_size, parity={},
            bytes=(folder / "int8.onnx").stat().st_size,
        ).save(folder / name)  # fmt: skip
    return folder / "package"


@contextmanager
def served(bench: Bench, package: str = "package") -> Iterator[tuple[ServerConfig, ServerStatus]]:
    """A package on a server of its own, as version 1."""
    folder = bench.folder / f"server-{package}"
    folder.mkdir(exist_ok=True)
    config = ServerConfig(folder=folder, package=bench.folder / package, model=MODEL, version="1", ports=free_ports())
    try:
        yield config, start_server(config)
    finally:
        stop_folder(folder)


def throughput(bench: Bench) -> None:
    """Texts a second of the server at its knee, of the best in-process loop, and of two rivals, in turns.

    The server as it comes, with all cores for each batch, and with an encoder of one thread for each core.
    """
    inside = InProcess(bench.folder, bench.texts)
    pipeline = TransformersPipeline(bench.folder / "checkpoint", bench.texts)
    speed: dict[str, list[float]] = {
        name: [] for name in ("list", "list, as it comes", "single", "single, as it comes", "in process", "pipeline",
                              "MLServer")
    }  # fmt: skip
    sizes = {way: {size: inside.sorted_batches(size, way) for size in (1, 2, 4, 8, 16, 32, 64)} for way in inside.ways}
    best = {way: max(speeds, key=speeds.__getitem__) for way, speeds in sizes.items()}
    bench.note("best in-process batch, by batches under way", best)
    with served(bench) as (_, status):
        callers = bench.knee(status)
    with served(bench, "many") as (_, status):
        ramp = {requests: predict_list(status, bench.texts, requests) for requests in (1, 2, 3, 4, 6)}
    bench.note("texts a second of a list, by requests under way", {k: round(v, 1) for k, v in ramp.items()})
    requests = min(requests for requests, value in ramp.items() if value >= 0.95 * max(ramp.values()))
    for _ in range(bench.rounds):
        for package, how in (("many", ""), ("package", ", as it comes")):
            with served(bench, package) as (_, status):
                predict_list(status, bench.texts[:256], requests)
                speed[f"list{how}"].append(predict_list(status, bench.texts, requests))
                if bench.mlserver:
                    load = bench.load(status, callers, bench.seconds(15))
                    speed[f"single{how}"].append(load.texts_per_second)
        speed["in process"].append(max(inside.sorted_batches(size, way) for way, size in best.items()))
        speed["pipeline"].append(pipeline.run(32))
        if bench.mlserver:
            with mlserver(bench.mlserver, bench.folder) as ask:
                speed["MLServer"].append(ask(bench.texts, concurrency=32, seconds=bench.seconds(15)))
    bench.note("texts a second", {name: [round(value, 1) for value in values] for name, values in speed.items()})
    for own, rival, least in (("list", "in process", 0.85), ("list", "pipeline", 4.0), ("single", "MLServer", 2.5)):
        if speed[rival]:
            for how in (", as it comes", ""):
                ratios = [a / b for a, b in zip(speed[f"{own}{how}"], speed[rival], strict=True)]
                bench.note(f"throughput by {rival}{how}, each round", [round(ratio, 3) for ratio in ratios])
                if how:
                    bench.note(f"throughput by {rival}{how}", round(statistics.median(ratios), 2))
                else:
                    bench.claim(f"throughput by {rival}", statistics.median(ratios), low=least)


def predict_list(status: ServerStatus, texts: Sequence[str], requests: int) -> float:
    """Texts a second of `stillhouse.client` with a list, of which so many requests are under way at once."""
    with Client(status.grpc_url, MODEL, concurrency=requests, timeout=60.0) as client:
        client.predict_one("warm")
        begin = time.perf_counter()
        client.predict(texts)
        return len(texts) / (time.perf_counter() - begin)


def latency(bench: Bench) -> None:
    """One caller, one text a request: the medians beside that of the same texts in process, in short turns."""
    inside = InProcess(bench.folder, bench.texts)
    took: dict[str, list[float]] = {"in process": [], "front": [], "package": [], "echo": []}
    texts = cycle(bench.texts)
    with served(bench, "front") as (_, front), served(bench) as (_, package), echo() as echo_url:
        servers = [("front", front.grpc_url), ("package", package.grpc_url)]
        for _, url in servers:
            one_by_one(url, bench.texts, 2.0)
        for turn in range(4 * bench.rounds):
            took["in process"].append(inside.single(bench.seconds(3)))
            for name, url in servers[:: 1 if turn % 2 else -1]:
                took[name].append(one_by_one(url, bench.texts, bench.seconds(3)))
            # As long apart as answers are, and with caches as they leave them.
            took["echo"].append(one_by_one(echo_url, bench.texts, bench.seconds(3), lambda: inside.one(next(texts))))
    for name, values in took.items():
        spread = statistics.median(values), min(values), max(values)
        bench.note(f"p50 of one text, ms, {name}", [round(value, 2) for value in spread])
    without, above = (float(np.median(np.subtract(took[name], took["in process"]))) for name in ("package", "front"))
    bench.note("p50 of one text above in-process, ms, without encoder_in_front", round(without, 2))
    bench.claim("p50 of one text above in-process, ms, with encoder_in_front", above, high=1.5)


def one_by_one(url: str, texts: Sequence[str], seconds: float, before: Callable[[], object] = lambda: None) -> float:
    """Median milliseconds of one caller that waits for each answer; `before` each request something else is done."""
    requests = cycle(prepare_requests(MODEL, texts, 1, []))
    took = []
    with grpc.insecure_channel(url) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            before()
            begin = time.perf_counter()
            infer(next(requests))
            took.append(time.perf_counter() - begin)
    return 1000 * statistics.median(took)


@contextmanager
def punctual() -> Iterator[None]:
    """Let this thread run as soon as it is to, where this user may ask for that."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        print("       without real-time priority: delays of the generator count as the server's", flush=True)
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def overload(bench: Bench) -> None:
    """Requests come at twice the rate of the knee, whether or not they are answered."""
    with served(bench) as (_, status):
        rate = bench.load_at_knee(status, 20).texts_per_second
    with served(bench, "bounded") as (_, status):
        calm = bench.load(status, 1, bench.seconds(30))
        with punctual():
            hard = run_open_load(status.grpc_url, MODEL, bench.texts, rate=2 * rate, seconds=bench.seconds(120))
        after = bench.load(status, 1, bench.seconds(30))
    bench.note("overload", {"unloaded": calm.to_dict(), "at twice the knee": hard.to_dict(), "after": after.to_dict()})
    bench.claim("p99 of what is accepted at twice the knee, by the unloaded", hard.p99 / calm.p99, high=3.0)
    bench.claim("median time to refuse, by the unloaded p50", hard.error_p50 / calm.p50, high=1.0)
    wrong = sum(count for status, count in hard.errors.items() if status not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"))
    bench.claim("requests refused with another status", wrong, high=0)
    bench.claim("share that is answered, of what the knee would do", hard.texts_per_second / rate, low=0.33)
    bench.claim("p99 afterwards, by the one before", after.p99 / calm.p99, high=1.25)


def soak(bench: Bench) -> None:
    """70% of the knee's throughput, as an open loop, once queue and arenas have found their size.

    That is after half a minute of more than it can do, which fills the queue, and two minutes of the load itself. The
    knee's throughput is measured anew before each half minute: what a shared machine can do changes by the minute.
    """
    with served(bench, "many") as (config, status):
        parts: list[LoadResult] = []
        held: list[int] = []
        rates: list[float] = []
        errors: list[Counter[str]] = []
        rate = bench.load_at_knee(status, 5).texts_per_second
        run_open_load(status.grpc_url, MODEL, bench.texts, rate=1.5 * rate, seconds=bench.seconds(30))
        for _ in range(24):
            knee = bench.load_at_knee(status, 5)
            rates.append(knee.texts_per_second)
            with punctual():
                parts.append(
                    run_open_load(status.grpc_url, MODEL, bench.texts, rate=0.7 * rates[-1], seconds=bench.seconds(30))
                )
            errors.append(Counter(knee.errors) + Counter(parts[-1].errors))
            held.append(memory(config))
    held = held[3:]
    latencies = np.concatenate([part.latencies for part in parts[4:]])
    bench.note("soak: requests", sum(part.requests for part in parts))
    bench.note("soak: texts a second at the knee, before each half minute", [round(rate, 1) for rate in rates])
    bench.note("soak: p50 and p99, ms", [round(float(value), 1) for value in np.percentile(latencies, (50, 99))])
    bench.note("soak: errors, each half minute", [dict(part) for part in errors])
    bench.note("soak: MB held, after each half minute", [round(value / 1e6, 1) for value in held])
    bench.claim("errors in ten minutes at 70% of the knee", sum(map(Counter.total, errors)), high=0)
    bench.claim("growth of memory", held[-1] / held[0] - 1, high=0.02)


def releases(bench: Bench) -> None:
    """20 changes of release and back, under constant load, with an error for every request that fails."""
    packages = {}
    for version in ("1", "2", "3"):
        packages[version] = bench.folder / f"release-{version}"
        if not packages[version].exists():
            copy_release(bench.folder / "package", packages[version], version)
    order = [("2", "3", "2", "1")[number % 4] for number in range(4 if bench.quick else 20)]
    with served(bench) as (config, status):
        reigns = [(time.monotonic(), "1")]  # when the server may first have answered as which release
        with constant_load(status.grpc_url, bench.texts) as answers:
            for version in order:
                time.sleep(1.0)
                reigns.append((time.monotonic(), version))
                switch_server(replace(config, package=packages[version], version=version))
                reigns.append((time.monotonic(), ""))  # from here on it alone
            time.sleep(1.0)
    failed = [answer for answer in answers if answer[3]]
    for answer in failed[:3]:
        print(f"       {answer[3]}")
    bench.note("releases", {"changes": len(order), "requests": len(answers)})
    bench.claim("failed requests", len(failed), high=0)
    bench.claim(
        "answers of a release that was not current", sum(not current(answer, reigns) for answer in answers), high=0
    )


def current(answer: tuple[float, float, str, str], reigns: Sequence[tuple[float, str]]) -> bool:
    """Whether the release that answered reigned at some time between sending and receiving."""
    sent, received, release, error = answer
    if error:
        return True
    present, allowed = "1", set()
    for index, (since, version) in enumerate(reigns):
        until = reigns[index + 1][0] if index + 1 < len(reigns) else float("inf")
        if version and version != present:  # changing: either of both
            both, present = {present, version}, version
        else:
            both = {present}
        if since <= received and until >= sent:
            allowed |= both
    return release in allowed


def faults(bench: Bench) -> None:
    """Kill each process of the server under load, and wait for the next answer."""
    for victim in (f"{MODEL}/", f"{MODEL}-encoder/", "tritonserver"):
        with served(bench) as (config, status):
            group = [psutil.Process(status.server_pid), *psutil.Process(status.server_pid).children(recursive=True)]
            with constant_load(status.grpc_url, bench.texts) as answers:
                time.sleep(2.0)
                log = config.folder / "logs" / "supervisor.log"
                before = len(log.read_text(encoding="utf-8"))
                (process,) = [one for one in group if is_victim(one, victim, status.server_pid)]
                killed = time.monotonic()
                process.kill()
                while not [a for a in list(answers) if a[0] > killed + 0.2 and not a[3]]:
                    if time.monotonic() > killed + 60:
                        break
                    time.sleep(0.05)
                again = time.monotonic() - killed
            orphans = sum(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in group)
            lines = log.read_text(encoding="utf-8")[before:].splitlines()
        name = victim.rstrip("/")
        bench.note(f"supervisor's log after SIGKILL of {name}", lines)
        bench.claim(f"seconds to the next answer after SIGKILL of {name}", again, high=10)
        bench.claim(f"processes left of the killed server ({name})", orphans, high=0)


def is_victim(process: psutil.Process, victim: str, server: int) -> bool:
    if victim == "tritonserver":
        return process.pid == server
    return any(f"/{victim}" in part for part in process.cmdline()[1:2])


def drain(bench: Bench) -> None:
    """SIGTERM under load: whatever was accepted before is answered."""
    with served(bench) as (_, status):
        with constant_load(status.grpc_url, bench.texts, threads=16) as answers:
            time.sleep(3.0)
            asked = time.monotonic()
            os.kill(status.pid, signal.SIGTERM)
            psutil.Process(status.pid).wait(timeout=60)
        took = time.monotonic() - asked
    waiting = [answer for answer in answers if answer[0] < asked < answer[1]]
    bench.note("drain", {"requests under way at SIGTERM": len(waiting), "seconds to the end": round(took, 2)})
    bench.claim("requests under way at SIGTERM that were not answered", sum(bool(a[3]) for a in waiting), high=0)


@contextmanager
def constant_load(url: str, texts: Sequence[str], threads: int = 4) -> Iterator[list[tuple[float, float, str, str]]]:
    """Callers without retries; yields when each request was sent and answered, by which release, or the error."""
    answers: list[tuple[float, float, str, str]] = []
    over = threading.Event()

    def ask(number: int) -> None:
        with Client(url, MODEL, retries=0, timeout=10.0) as client:
            turn = number
            while not over.is_set():
                sent = time.monotonic()
                try:
                    answer = client.predict_one(texts[turn % len(texts)])
                    answers.append((sent, time.monotonic(), answer.release, ""))
                except ServingError as error:
                    answers.append((sent, time.monotonic(), "", str(error)))
                    time.sleep(0.02)
                turn += threads

    workers = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield answers
    finally:
        over.set()
        for worker in workers:
            worker.join()


def copy_release(package: Path, target: Path, version: str) -> None:
    shutil.copytree(package, target)
    set_model_version(target / "triton", MODEL, version)


def memory(config: ServerConfig) -> int:
    """Bytes that the server and its Python processes have for themselves, and what they share with one another.

    Pages of libraries count for nothing: whose they are changes with every other process that loads the same library.
    """
    status = read_status(config.folder)
    assert status is not None
    server = psutil.Process(status.server_pid)
    total = 0
    for process in (server, *server.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            for part in process.memory_maps():
                total += part.pss if part.path.startswith("/dev/shm/") else part.private_clean + part.private_dirty
    return total


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part for part in (throughput, latency, overload, releases, faults, drain, soak)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--mlserver", default="", metavar="PYTHON")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER")
    given = parser.parse_args()
    with (SHARED / "sst2/test.tsv").open(encoding="utf-8") as file:
        texts = [row["sentence"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    with terminable(), tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        bench = Bench(Path(folder), texts, given.quick, given.mlserver)
        build(bench.folder)
        for name in given.parts or PARTS:
            print(f"== {name}", flush=True)
            PARTS[name](bench)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "serving.json").write_text(json.dumps(bench.found, indent=2) + "\n", encoding="utf-8")
    return min(1, bench.faults)


if __name__ == "__main__":
    sys.exit(main())
