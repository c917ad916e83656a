"""A pipeline process in miniature: it plays back the events that the real one, tested in tests/e2e, writes."""

from __future__ import annotations

from typing import Any

PLAYER = """
import json, os, subprocess, sys, time
script = json.loads(open(sys.argv[1]).read())
for act in script:
    if "print" in act:
        print(act["print"], flush=True)
    elif "sleep" in act:
        time.sleep(act["sleep"])
    elif "child" in act:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(act["child"], "w").write(str(child.pid))
    elif "arguments" in act:
        open(act["arguments"], "w").write(json.dumps(sys.argv[2:]))
    elif "exit" in act:
        sys.exit(act["exit"])
    else:
        with open(os.environ["STILLHOUSE_EVENTS"], "a") as file:
            file.write(json.dumps({"time": time.time(), **act}) + "\\n")
"""

PLAN = [
    {"id": "inspect-source", "title": "Inspect the source"},
    {"id": "prepare-data", "title": "Prepare data"},
    {"id": "distill-student", "title": "Distil the student"},
    {"id": "evaluate", "title": "Evaluate"},
    {"id": "register", "title": "Register"},
    {"id": "deploy", "title": "Deploy"},
]


def event(step: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"step": step, "event": name, **fields}


def candidate(name: str, precision: str, quality: float, p50: float, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "precision": precision,
        "metrics": {"accuracy": quality, "macro_f1": quality - 0.001},
        "interval": [quality - 0.02, quality + 0.02],
        "retention": quality / 0.9,
        "latency_ms": {"p50": p50, "p95": p50 * 1.5, "p99": p50 * 2},
        "speedup_vs_teacher": 8.0 / p50,
        "throughput": 1000 / p50,
        "parameters": 22_700_000,
        "bytes": size,
        "peak_memory_mb": 310.0,
        "parity": {"max_difference": 2e-7},
        "details": {},
    }
