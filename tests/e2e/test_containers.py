"""The images, and the whole pipeline in them: kfp's DockerRunner, MLflow on PostgreSQL, real data."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from containers import ROOT, MlflowServer, call, engine_flags, make_images, show

from stillhouse import __version__
from stillhouse.artifacts import EvaluationManifest, PackageManifest, sha256_file
from stillhouse.components.images import OPS_IMAGE, TRAIN_IMAGE
from stillhouse.evaluation.table import chosen

pytestmark = pytest.mark.slow

IMAGES = {"train": TRAIN_IMAGE, "ops": OPS_IMAGE}
OPS_STEPS = {"deploy", "fetch-champion", "notify"}
USER = 1000


def in_image(name: str, *command: str, volumes: tuple[str, ...] = ()) -> str:
    """Run a command in a container of an image, as the image's own user."""
    options = ["--rm", "--network=host", *(part for volume in volumes for part in ("--volume", volume))]
    return call("docker", "run", *options, IMAGES[name], *command)


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """`make images`; what the engine says of each."""
    begin = time.monotonic()
    said = make_images(engine_flags(), *IMAGES)  # the others are tested where they serve
    sizes = [line for line in said.splitlines() if line.startswith(tuple(IMAGES.values()))]
    show(request, "\n".join([f"make images: {time.monotonic() - begin:.0f} s", *sizes]))
    assert {line.split()[0] for line in sizes} == set(IMAGES.values())
    return {name: json.loads(call("docker", "image", "inspect", image))[0] for name, image in IMAGES.items()}


# -- the images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_labels_say_what_is_inside(images: dict[str, Any], name: str):
    labels = {k.removeprefix("org.opencontainers.image."): v for k, v in images[name]["Config"]["Labels"].items()}
    assert labels["title"] == f"stillhouse-{name}"
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert labels["source"].startswith("https://")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert labels["revision"].removesuffix("-dirty") == (head or "unknown")


@pytest.mark.parametrize("name", IMAGES)
def test_the_user_is_not_root_and_writes_where_kfp_does(images: dict[str, Any], name: str):
    assert images[name]["Config"]["User"] == f"{USER}:{USER}"
    folders = "$HOME /tmp /gcs /minio /s3 /.local /.cache /.config"
    script = f"id -u; for folder in {folders}; do mkdir -p $folder/a/b && echo written; done; touch $(which python3)"
    done = subprocess.run(["docker", "run", "--rm", IMAGES[name], "sh", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == [str(USER), *["written"] * 8], done.stderr
    assert done.returncode != 0, "the environment itself is writable"
    # As on a cluster that gives each pod a user of its own: unknown to the image, in group 0.
    options = ["--rm", "--user=1234567:0", IMAGES[name]]
    said = call(
        "docker",
        "run",
        *options,
        "sh",
        "-c",
        "mkdir $HOME/a /minio/a && python3 -c 'import getpass, kfp.dsl; print(getpass.getuser())'",
    )
    assert said.strip() == "stillhouse"


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_is_left_of_the_build(images: dict[str, Any], name: str):
    script = """
for tool in gcc g++ cc c++ ld make git; do command -v $tool; done
for path in /build /wheel /code ~root/.cache $HOME/.cache /tmp/*; do test -e $path && echo $path; done
find /opt/stillhouse -name '*.whl' -o -path '*/pip/__init__.py'
"""
    assert call("docker", "run", "--rm", "--user=0", IMAGES[name], "sh", "-c", script) == ""
    where = in_image(name, "python3", "-c", "import stillhouse; print(stillhouse.__file__)")
    assert re.fullmatch(r"/opt/stillhouse/lib/python3\.\d+/site-packages/stillhouse/__init__\.py", where.strip())


@pytest.mark.parametrize("name", IMAGES)
def test_the_command_line_and_the_tested_versions_are_there(images: dict[str, Any], name: str):
    assert "Usage" in in_image(name, "stillhouse", "--help")
    frozen = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    found = dict(pin.lower().replace("_", "-").split("==") for pin in in_image(name, "python3", "-c", frozen).split())
    assert found["stillhouse"] == __version__
    tested = dict(re.findall(r"^([\w.-]+)==([^;]+);", (ROOT / "constraints.txt").read_text().lower(), re.MULTILINE))
    assert {k: v.split("+")[0] for k, v in found.items() if k in tested}.items() <= tested.items()


def test_ops_holds_helm_and_the_charts_and_no_torch(images: dict[str, Any]):
    assert re.match(r"v3\.", in_image("ops", "helm", "version", "--short"))
    code = """
import importlib.resources, importlib.util, json
charts = importlib.resources.files("stillhouse.charts")
files = [str(p.relative_to(charts)) for p in charts.rglob("*") if p.is_file() and p.suffix != ".pyc"]
names = ("torch", "transformers", "pandas", "sklearn", "matplotlib", "pyarrow", "sqlalchemy", "scipy", "pip")
print(json.dumps([files, [name for name in names if importlib.util.find_spec(name)]]))
"""
    files, present = json.loads(in_image("ops", "python3", "-c", code))
    assert present == []
    tree = ROOT / "charts"
    assert set(files) == {str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert images["ops"]["Size"] < images["train"]["Size"] / 2


def test_train_holds_what_the_mlflow_server_of_the_chart_needs(images: dict[str, Any]):
    """Drivers for the database and the stores, which MLflow itself leaves to its users; and the job that publishes."""
    modules = ("psycopg2", "boto3", "google.cloud.storage", "uvicorn", "mlflow.server", "sqlalchemy", "kfp_server_api")
    in_image("train", "python3", "-c", f"import {', '.join(modules)}")
    assert "--allowed-hosts" in in_image("train", "mlflow", "server", "--help")
    assert "FILE" in in_image("train", "stillhouse", "publish", "--help")


# -- the pipeline in them ---------------------------------------------------------------------------------------------


@dataclass
class ContainerRun:
    """What a run of the pipeline in containers left behind."""

    root: Path
    log: str
    started: list[str]
    """Image of each container that the engine started, in order."""
    server: str

    def evaluation(self) -> Path:
        (folder,) = self.root.glob("*/evaluate/evaluation")
        return folder


@pytest.fixture(scope="module")
def run(
    images: dict[str, Any], mlflow_server: MlflowServer, sst2: Path, tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> ContainerRun:  # fmt: skip
    """The `tiny` pipeline on SST-2, each step in a container of its image."""
    from docker.types import Mount
    from kfp import local
    from kfp.local.config import LocalExecutionConfig

    from stillhouse.pipelines.parameters import arguments_for
    from stillhouse.pipelines.train_and_deploy import train_and_deploy

    arguments, problems = arguments_for("tiny", [
        "data=/data/train.tsv", "validation_data=/data/dev.tsv", "test_data=/data/test.tsv", "text_column=sentence",
        "label_column=label", f"tracking_uri={mlflow_server.url}", "deploy_target=none",
    ])  # fmt: skip
    assert problems == []
    folder = tmp_path_factory.mktemp("containers")
    root = folder / "artifacts"
    root.mkdir()
    root.chmod(0o777)  # the containers' user is not the one who runs this
    begin, label = time.monotonic(), {"stillhouse.test": folder.name}  # other tests start containers meanwhile
    runner = local.DockerRunner(
        network_mode="host", mounts=[Mount("/data", str(sst2), type="bind", read_only=True)], labels=label
    )  # fmt: skip
    local.init(runner=runner, pipeline_root=str(root))
    # Listened to from the beginning: the engine remembers the last 256 events only.
    listen = ["docker", "events", "--filter=event=start", f"--filter=label=stillhouse.test={folder.name}"]
    with (folder / "started").open("w") as started:
        listener = subprocess.Popen([*listen, "--format={{.From}}"], stdout=started)
    try:
        with (folder / "kfp.log").open("w") as log, contextlib.redirect_stdout(log):
            train_and_deploy(**arguments)
    except RuntimeError as error:  # kfp.local's, of a failed step
        pytest.fail(f"{error}\n{(folder / 'kfp.log').read_text()[-5000:]}")
    finally:
        LocalExecutionConfig.instance = None
        listener.terminate()
        listener.wait(timeout=10)
    show(request, f"the pipeline in containers: {time.monotonic() - begin:.0f} s")
    text = re.sub(r"\x1b\[\d+m", "", (folder / "kfp.log").read_text())
    return ContainerRun(root, text, (folder / "started").read_text().split(), mlflow_server.url)


def test_every_step_ran_in_its_image(run: ContainerRun):
    from kfp.dsl.python_component import PythonComponent

    from stillhouse.pipelines import train_and_deploy as wiring

    steps = re.findall(r"Executing task '([^']+)'.*?Found image '([^']+)'", run.log, re.DOTALL)
    images = {re.sub(r"-\d+$", "", name): image for name, image in steps}
    components = {name.replace("_", "-") for name, value in vars(wiring).items() if isinstance(value, PythonComponent)}
    assert images == {name: OPS_IMAGE if name in OPS_STEPS else TRAIN_IMAGE for name in components}
    assert run.started == [image for _, image in steps]
    assert {path.stat().st_uid for path in run.root.glob("*/*/*")} == {USER}


def test_the_model_is_as_good_as_outside(run: ContainerRun):
    evaluation = EvaluationManifest.load(run.evaluation())
    assert evaluation.test_rows == 1821
    assert chosen(evaluation)["metrics"]["accuracy"] >= 0.74


def test_the_registered_version_loads_in_the_train_image(run: ContainerRun):
    code = f"""
import mlflow
mlflow.set_tracking_uri({run.server!r})
model = mlflow.pyfunc.load_model("models:/tiny@challenger")
print(*model.predict(["a gripping, funny and moving film", "a dull, tedious and stupid mess"])["label"])
"""
    assert in_image("train", "python3", "-c", code).split()[-2:] == ["1", "0"]


def test_the_ops_image_fetches_the_release_and_knows_its_answers(run: ContainerRun):
    """All that a deployment does before the rollout: with mlflow-skinny, over HTTP, every digest checked."""
    code = f"""
import json
from pathlib import Path
from stillhouse.artifacts import sha256_file
from stillhouse.deploy import fetch_release
from stillhouse.deploy.smoke import known_answers
from stillhouse.registry import MlflowRegistry
registry = MlflowRegistry({run.server!r})
version = registry.get_alias("tiny", "challenger")
package = fetch_release(registry, "tiny", version, Path.home() / "releases")
rows = json.loads(Path("/evaluation/smoke.json").read_text())
manifest = sha256_file(package / "package.json")
print(json.dumps([version, manifest, registry.tags("tiny", version), len(known_answers(package, rows)), len(rows)]))
"""
    volumes = (f"{run.evaluation()}:/evaluation:ro",)
    version, digest, tags, answers, rows = json.loads(in_image("ops", "python3", "-c", code, volumes=volumes))
    assert version == "1"
    choice = chosen(EvaluationManifest.load(run.evaluation()))
    packages = {
        sha256_file(path): PackageManifest.load(path.parent) for path in run.root.glob("*/*/packages/*/package.json")
    }
    assert digest == tags["manifest_digest"] == choice["package_digest"]
    assert (packages[digest].name, packages[digest].precision) == (choice["name"], choice["precision"])
    assert answers == rows > 0
