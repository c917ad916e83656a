"""The main job on public data sets: quality, retention, size and speed of the three models, side by side.

    python benchmarks/public_data.py [sst2] [sms] [toxic]

Runs `stillhouse run --preset demo` with nothing but `--set` on SST-2 (10,000 training rows), SMS spam and a three-class
set of toxic content, and prints each run's table. All figures of a table come from one machine in one run: speed is
the ratio to the teacher at the same precision. For SST-2, the served model is then asked over gRPC for the whole test
split by a plain Triton client, and its accuracy is printed beside the measured one. The data is looked for in
`../shared/data`.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
PORTS = {"grpc_port": 18001, "http_port": 18000, "metrics_port": 18002}
SETS: dict[str, dict[str, Any]] = {
    "sst2": {
        "data": DATA / "sst2/train.tsv",
        "validation_data": DATA / "sst2/dev.tsv",
        "test_data": DATA / "sst2/test.tsv",
        "text_column": "sentence",
        "label_column": "label",
        "max_train_rows": 10000,
        "model_name": "sst2",
        **PORTS,
    },
    "sms": {
        "data": DATA / "sms_spam/SMSSpamCollection.tsv",
        "text_column": "SMS",
        "label_column": "Label",
        "quality_metric": "macro_f1",
        "model_name": "sms-spam",
        "deploy_target": "none",
    },
    "toxic": {
        "data": DATA / "hate_offensive/labeled_data.csv",
        "text_column": "tweet",
        "label_column": "class",
        "quality_metric": "macro_f1",
        "max_train_rows": 10000,
        "model_name": "toxic-content",
        "deploy_target": "none",
    },
}


def run(name: str, environment: dict[str, str]) -> dict[str, Any]:
    """One run of the pipeline; its JSON document."""
    options = [part for key, value in SETS[name].items() for part in ("--set", f"{key}={value}")]
    begin = time.monotonic()
    command = [sys.executable, "-m", "stillhouse.cli.main", "run", "--preset", "demo", "--json", *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    print(f"\n{name}: {(time.monotonic() - begin) / 60:.1f} minutes\n")
    return document


def table(evaluation: dict[str, Any]) -> None:
    """Print the candidates and baselines of one run."""
    teacher = next(c for c in evaluation["candidates"] if (c["name"], c["precision"]) == ("teacher", "fp32"))
    print("model     precision  accuracy  macro-F1  retention  parameters  megabytes  speed-up")
    for c in evaluation["candidates"]:
        share = c["parameters"] / teacher["parameters"]
        print(
            f"{c['name']:<10}{c['precision']:<11}{c['metrics']['accuracy']:<10.3f}{c['metrics']['macro_f1']:<10.3f}"
            f"{c['retention']:<11.3f}{share:<12.0%}{c['bytes'] / 1e6:<11.1f}{c['speedup_vs_teacher']:.2f}"
        )
    for b in evaluation["baselines"]:
        print(f"{b['name']:<21}{b['metrics']['accuracy']:<10.3f}{b['metrics']['macro_f1']:.3f}")
    print(f"chosen: {evaluation['choice']['name']} {evaluation['choice']['precision']}")


def served_accuracy(url: str, model: str) -> float:
    """Accuracy on the SST-2 test split of what answers over gRPC; nothing of Stillhouse in between."""
    with (DATA / "sst2/test.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    client, right = triton.InferenceServerClient(url), 0
    for start in range(0, len(rows), 32):
        batch = rows[start : start + 32]
        tensor = triton.InferInput("TEXT", [len(batch), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[row["sentence"].encode()] for row in batch], dtype=np.object_))
        labels = client.infer(model, [tensor]).as_numpy("LABEL")
        right += sum(label[0].decode() == row["label"] for label, row in zip(labels, batch, strict=True))
    return right / len(rows)


def main() -> None:
    """Run the data sets named on the command line, or all."""
    if not DATA.is_dir():
        sys.exit(f"The public data sets are not at {DATA}.")
    with tempfile.TemporaryDirectory(prefix="stillhouse-benchmark-") as home:
        environment = {**os.environ, "STILLHOUSE_HOME": os.environ.get("STILLHOUSE_HOME", home)}
        for name in sys.argv[1:] or SETS:
            document = run(name, environment)
            evaluation = document["evaluation"]
            table(evaluation)
            if name == "sst2":
                choice = evaluation["choice"]
                chosen = next(c for c in evaluation["candidates"]
                              if (c["name"], c["precision"]) == (choice["name"], choice["precision"]))  # fmt: skip
                url = document["endpoint"]["url"]
                served = served_accuracy(url, "sst2")
                print(f"measured accuracy {chosen['metrics']['accuracy']:.4f}, over gRPC {served:.4f}")
                stop = [sys.executable, "-m", "stillhouse.cli.main", "serve", "stop"]
                subprocess.run(stop, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
