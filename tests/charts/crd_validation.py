"""Custom resources against the definitions that their projects publish, as packages of npm carry them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helm_binary import installed_from_npm

# Generated from the Go types of each project; validators, not schemas.
PACKAGES = (
    "@kubernetes-models/gateway-api@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0",
    "@kubernetes-models/cert-manager@6.0.0",
    "@kubernetes-models/keda@2.0.0",
)


def crd_faults(manifests: Sequence[dict[str, Any]]) -> list[str]:
    """What of the manifests their definitions do not allow, unknown fields included.

    Raises:
        HelmMissing: node or npm is not there, or the packages cannot be had.
    """
    folders = [installed_from_npm(package) for package in PACKAGES]
    script = Path(__file__).with_name("crd_schemas.mjs")
    command = [shutil.which("node") or "node", str(script), *map(str, folders)]
    done = subprocess.run(command, input=json.dumps(manifests), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    faults: list[str] = json.loads(done.stdout)
    return faults
