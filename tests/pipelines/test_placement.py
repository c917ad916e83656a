"""Each setting of a cluster reaches the executor or the platform spec of the steps that it is for."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import InputError
from stillhouse.pipelines.catalogue import PRETRAIN, TRAIN_AND_DEPLOY
from stillhouse.pipelines.compiling import cluster_defaults, cluster_names, compiled_yaml, load_cluster
from stillhouse.pipelines.placement import STEPS

CUSTOM = """
pretrain_preset: tiny
parameters: {gpus_per_node: 2, node_selector: {pool: a100}, policy: memory}
images: {registry: registry.example.com/ml/, tag: "2.0", pull_policy: Always, pull_secrets: [pull-me]}
environment: {HTTPS_PROXY: "http://proxy:3128"}
secrets:
  - {name: hub, variables: [HF_TOKEN], steps: [finetune]}
volumes: {cache: hub-cache, checkpoints: checkpoints}
steps:
  default: {cpu: 500m, memory: 3Gi, retries: 4, backoff_seconds: 5, backoff_factor: 1.5, timeout_minutes: 7}
  evaluate: {cpu: "6", retries: 0}
"""
TRAINING = {"exec-finetune", "exec-finetune-2", "exec-finetune-3", "exec-distill"}


class Compiled:
    """A compiled pipeline, looked at by executor."""

    def __init__(self, text: str) -> None:
        self.spec, platform = yaml.safe_load_all(text)
        self.containers = {n: e["container"] for n, e in self.spec["deploymentSpec"]["executors"].items()}
        self.platform = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    def tasks(self) -> dict[str, Any]:
        """Every task that runs a container, by executor."""
        dags = [self.spec["root"], *(c for c in self.spec["components"].values() if "dag" in c)]
        found = {}
        for dag in dags:
            for task in dag["dag"]["tasks"].values():
                component = self.spec["components"][task["componentRef"]["name"]]
                if "executorLabel" in component:
                    found[component["executorLabel"]] = task
        return found


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    path = tmp_path_factory.mktemp("cluster") / "ours.yaml"
    path.write_text(CUSTOM)
    cluster = load_cluster(str(path))
    return Compiled(compiled_yaml(cluster, cluster.defaults()))


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    path = tmp_path_factory.mktemp("cluster") / "ours.yaml"
    path.write_text(CUSTOM)
    cluster, defaults, problems = cluster_defaults(str(path), PRETRAIN)
    assert problems == []
    return Compiled(compiled_yaml(cluster, defaults, PRETRAIN))


def test_every_step_of_the_pipelines_can_be_set(custom: Compiled, pretraining: Compiled):
    tasks = [*custom.tasks().values(), *pretraining.tasks().values()]
    components = {task["componentRef"]["name"].removeprefix("comp-").rstrip("-0123456789") for task in tasks}
    assert {name.replace("-", "_") for name in components} == set(STEPS)


def test_the_pretraining_pipeline_is_placed_in_the_same_way(pretraining: Compiled):
    having = {name for name, c in pretraining.containers.items() if "accelerator" in c.get("resources", {})}
    assert having == {"exec-pretrain"}
    resources = pretraining.containers["exec-pretrain"]["resources"]
    inputs = pretraining.tasks()["exec-pretrain"]["inputs"]["parameters"]
    taken = {name: inputs[text.removeprefix("{{$.inputs.parameters['").removesuffix("']}}")] for name, text in
             {"memory": resources["resourceMemoryLimit"], "type": resources["accelerator"]["resourceType"],
              "count": resources["accelerator"]["resourceCount"]}.items()}  # fmt: skip
    assert taken["memory"]["componentInputParameter"].endswith("train_memory")
    assert taken["type"]["componentInputParameter"].endswith("gpu_type")
    assert taken["count"]["taskOutputParameter"] == {"producerTask": "inspect-corpus", "outputParameterKey": "gpus"}
    config = pretraining.platform["exec-pretrain"]
    assert config["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"].endswith("node_selector")
    mounts = {
        name: {mount["mountPath"]: mount["constant"] for mount in one.get("pvcMount", ())}
        for name, one in pretraining.platform.items()
    }
    cached = {"/cache": "hub-cache"}
    assert mounts == {
        "exec-inspect-corpus": cached, "exec-prepare-corpus": cached, "exec-record-pretraining": cached,
        "exec-pretrain": {**cached, "/checkpoints": "checkpoints"}, "exec-notify": {},
    }  # fmt: skip
    # What a cluster's file sets for the other pipeline alone is no parameter of this one.
    defaults = pretraining.spec["root"]["inputDefinitions"]["parameters"]
    assert (defaults["gpus_per_node"]["defaultValue"], defaults["steps"]["defaultValue"]) == (2, 40)
    assert "policy" not in defaults


def test_an_unknown_parameter_is_one_of_no_pipeline(tmp_path: Path):
    path = tmp_path / "ours.yaml"
    path.write_text("pretrain_preset: huge\nparameters: {policy: memory, steps: 5, stepz: 5}\n")
    of_both = {"parameters.stepz"}
    for pipeline, wrong in ((TRAIN_AND_DEPLOY, of_both), (PRETRAIN, {*of_both, "pretrain_preset"})):
        cluster, defaults, problems = cluster_defaults(str(path), pipeline)
        assert {problem.where.removeprefix(f"{path}: ") for problem in problems} == wrong
        assert ("policy" in defaults, "steps" in defaults) == (pipeline is TRAIN_AND_DEPLOY, pipeline is PRETRAIN)
        assert set(cluster.parameters) == {"policy", "steps"}


def test_image_registry_tag_policy_and_pull_secrets(custom: Compiled):
    assert {c["image"] for c in custom.containers.values()} == {
        "registry.example.com/ml/stillhouse-train:2.0",
        "registry.example.com/ml/stillhouse-ops:2.0",
    }
    for config in custom.platform.values():
        assert config["imagePullPolicy"] == "Always"
        assert [secret["secretName"] for secret in config["imagePullSecret"]] == ["pull-me"]


def test_cpu_and_memory_of_the_light_steps_are_literals(custom: Compiled):
    package = custom.containers["exec-package"]["resources"]
    assert (package["resourceCpuRequest"], package["resourceMemoryRequest"]) == ("500m", "3Gi")
    assert package["resourceMemoryLimit"] == "3Gi"
    assert "resourceCpuLimit" not in package
    assert custom.containers["exec-evaluate"]["resources"]["resourceCpuRequest"] == "6"


@pytest.mark.parametrize("executor", sorted(TRAINING))
def test_training_takes_its_resources_from_the_run_s_parameters(custom: Compiled, executor: str):
    resources = custom.containers[executor]["resources"]
    inputs = custom.tasks()[executor]["inputs"]["parameters"]

    def source(placeholder: str) -> dict:
        name = placeholder.removeprefix("{{$.inputs.parameters['").removesuffix("']}}")
        return inputs[name]

    assert source(resources["resourceCpuRequest"])["componentInputParameter"].endswith("train_cpu")
    assert source(resources["resourceMemoryLimit"])["componentInputParameter"].endswith("train_memory")
    assert source(resources["resourceMemoryRequest"])["componentInputParameter"].endswith("train_memory")
    assert source(resources["accelerator"]["resourceType"])["componentInputParameter"].endswith("gpu_type")
    assert "gpus" in str(source(resources["accelerator"]["resourceCount"]))


@pytest.mark.parametrize("executor", sorted(TRAINING))
def test_training_takes_its_nodes_from_the_run_s_parameters(custom: Compiled, executor: str):
    config = custom.platform[executor]
    assert config["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"].endswith("node_selector")
    (toleration,) = config["tolerations"]
    assert toleration["tolerationJson"]["componentInputParameter"].endswith("tolerations")


@pytest.mark.parametrize("executor", sorted(TRAINING))
def test_nodes_can_be_fixed_when_compiled(tmp_path: Path, executor: str):
    path = tmp_path / "fixed.yaml"
    path.write_text(
        "training_nodes: {selector: {pool: gpu}, tolerations: [{key: gpu, value: 'yes', effect: NoExecute, "
        "tolerationSeconds: 9}, {operator: Exists}]}"
    )
    config = Compiled(compiled_yaml(load_cluster(str(path)), {})).platform[executor]
    assert config["nodeSelector"] == {"labels": {"pool": "gpu"}}
    fixed = {"key": "gpu", "value": "yes", "effect": "NoExecute", "tolerationSeconds": "9"}
    assert config["tolerations"][:2] == [fixed, {"operator": "Exists"}]
    assert "tolerationJson" in config["tolerations"][2]


def test_only_training_asks_for_gpus(custom: Compiled):
    assert {n for n, c in custom.containers.items() if "accelerator" in c.get("resources", {})} == TRAINING


def test_environment_reaches_every_step(custom: Compiled):
    for name, container in custom.containers.items():
        assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"], name


def test_a_secret_reaches_the_steps_named_and_no_other(custom: Compiled):
    having = {name for name, config in custom.platform.items() if "secretAsEnv" in config}
    assert having == {"exec-finetune", "exec-finetune-2", "exec-finetune-3"}
    (secret,) = custom.platform["exec-finetune"]["secretAsEnv"]
    assert secret["secretName"] == "hub"
    assert secret["optional"] is True
    assert secret["keyToEnv"] == [{"envVar": "HF_TOKEN", "secretKey": "HF_TOKEN"}]


def test_the_deployer_is_mounted_by_the_deploy_step_alone(custom: Compiled, tmp_path: Path):
    mounts = {name: config["secretAsVolume"] for name, config in custom.platform.items() if "secretAsVolume" in config}
    (mount,) = mounts.pop("exec-deploy")
    assert mounts.pop("exec-deploy-2") == [mount]  # a run takes one of the two
    assert (mount["secretName"], mount["mountPath"]) == ("stillhouse-deployer", "/var/run/secrets/stillhouse/deployer")
    assert mount["optional"] is True and mounts == {}
    for text, named in (("deployer: other", ["other"]), ('deployer: ""', [])):
        path = tmp_path / "deployer.yaml"
        path.write_text(text)
        config = Compiled(compiled_yaml(load_cluster(str(path)), {})).platform["exec-deploy"]
        assert [one["secretName"] for one in config.get("secretAsVolume", ())] == named


def test_volumes_are_mounted_where_they_are_used(custom: Compiled):
    mounts = {
        name: {mount["mountPath"]: mount["constant"] for mount in config.get("pvcMount", ())}
        for name, config in custom.platform.items()
    }
    assert mounts["exec-finetune"] == {"/cache": "hub-cache", "/checkpoints": "checkpoints"}
    assert mounts["exec-distill"] == {"/checkpoints": "checkpoints"}
    assert mounts["exec-prepare-data"] == {"/cache": "hub-cache"}
    assert mounts["exec-deploy"] == {}
    assert {"name": "HF_HOME", "value": "/cache/huggingface"} in custom.containers["exec-finetune"]["env"]
    inputs = custom.spec["root"]["inputDefinitions"]["parameters"]
    assert inputs["checkpoint_dir"]["defaultValue"] == "/checkpoints"


def test_retries_with_backoff(custom: Compiled):
    tasks = custom.tasks()
    assert tasks["exec-prepare-data"]["retryPolicy"] == {
        "maxRetryCount": 4,
        "backoffDuration": "5s",
        "backoffFactor": 1.5,
        "backoffMaxDuration": "3600s",
    }
    assert "retryPolicy" not in tasks["exec-evaluate"]


def test_timeouts(custom: Compiled):
    assert {config["activeDeadlineSeconds"] for config in custom.platform.values()} == {"420"}


def test_defaults_of_the_run_s_parameters(custom: Compiled):
    inputs = custom.spec["root"]["inputDefinitions"]["parameters"]
    assert inputs["gpus_per_node"]["defaultValue"] == 2
    assert inputs["node_selector"]["defaultValue"] == {"pool": "a100"}


@pytest.mark.parametrize("name", cluster_names())
def test_the_release_s_clusters_need_nothing_that_may_be_absent(name: str):
    cluster = load_cluster(name)
    compiled = Compiled(compiled_yaml(cluster, cluster.defaults()))
    for config in compiled.platform.values():
        assert "pvcMount" not in config
        assert "imagePullSecret" not in config
        assert all(secret["optional"] for secret in config.get("secretAsEnv", ()))


WRONG = {
    "volumes: {cahce: x}": ("volumes.cahce", "Did you mean cache? There are: cache, checkpoints."),
    "volums: {}": ("volums", "Did you mean volumes?"),
    "steps: {evalute: {cpu: 1}}": ("steps.evalute", "'evalute' is not a step."),
    "steps: {evaluate: {cpu: 2Gi}}": ("steps.evaluate.cpu", "'2Gi' is not a number of CPUs."),
    "steps: {evaluate: {memory: 500m}}": ("steps.evaluate.memory", "'500m' is not an amount of memory."),
    "steps: {evaluate: {memory: 1.5Gi}}": ("steps.evaluate.memory", "'1.5Gi' is not an amount of memory."),
    "steps: {evaluate: {retries: -1}}": ("steps.evaluate.retries", "-1 is too small. Give at least 0."),
    "steps: {evaluate: {retries: some}}": ("steps.evaluate.retries", "'some' is not a whole number."),
    "steps: {evaluate: 3}": ("steps.evaluate", "3 is not a mapping."),
    "steps: {finetune: {cpu: 4}}": ("steps.finetune.cpu", "has no effect. Set parameters.train_cpu."),
    "steps: {distill: {memory: 4Gi}}": ("steps.distill.memory", "has no effect. Set parameters.train_memory."),
    "environment: {DEBUG: 1}": ("environment.DEBUG", "1 is not text. Write it in quotes."),
    "environment: {A-B: x}": ("environment.A-B", "'A-B' is not the name of a variable."),
    "images: {tag: 2.0}": ("images.tag", "2.0 is not text. Write it in quotes."),
    "images: {registry: ''}": ("images.registry", "'' is not an image registry."),
    "images: {pull_policy: always}": ("images.pull_policy", "Choose 'Always', 'IfNotPresent' or 'Never'."),
    "secrets: [{name: Bad_Name, variables: [A], steps: [deploy]}]": (
        "secrets.0.name",
        "'Bad_Name' is not a Kubernetes",
    ),
    "secrets: [{name: a, variables: [], steps: [fine]}]": ("secrets.0.variables", "is empty. Name at least one."),
    "secrets: [{name: a, steps: [deploy]}]": ("secrets.0.variables", "is not given."),
    "training_nodes: {tolerations: [{}]}": ("training_nodes.tolerations.0", "there is no key to compare."),
    "training_nodes: {tolerations: [{effects: x}]}": ("training_nodes.tolerations.0.effects", "Did you mean effect?"),
    "preset: base\npreset: small": ("line 2", "'preset' stands there a second time."),
}


@pytest.mark.parametrize(("text", "said"), WRONG.items(), ids=[said[0] for said in WRONG.values()])
def test_what_is_wrong_in_a_file_is_said_in_plain_words(tmp_path: Path, text: str, said: tuple[str, str]):
    path = tmp_path / "ours.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_cluster(str(path))
    where, words = said
    # Each once, and no word of the library that found it.
    (problem,) = [p for p in error.value.problems if p.where == f"{path}: {where}"]
    assert words in str(problem)
    assert not re.search("pydantic|Input should|input_|Value error|String", str(error.value))


def test_everything_wrong_in_a_file_is_reported_at_once(tmp_path: Path):
    path = tmp_path / "ours.yaml"
    path.write_text(
        "volumes: {cahce: x}\nsteps: {evaluate: {cpu: lots, retries: -1}, finetune: {cpu: 1}}\n"
        "secrets: [{name: Bad_Name, variables: [A], steps: [fine]}]\npreset: huge\nparameters: {sed: 1, seed: x}\n"
    )
    _, _, problems = cluster_defaults(str(path))
    assert sorted(problem.where.removeprefix(f"{path}: ") for problem in problems) == sorted([
        "volumes.cahce", "steps.evaluate.cpu", "steps.evaluate.retries", "steps.finetune.cpu", "secrets.0.name",
        "secrets.0.steps.0", "preset", "parameters.sed", "parameters.seed",
    ])  # fmt: skip


def test_numbers_may_be_written_without_quotes(tmp_path: Path):
    path = tmp_path / "ours.yaml"
    path.write_text("steps: {default: {cpu: 2}, evaluate: {cpu: 0.5, memory: 2147483648}}\nparameters: {train_cpu: 3}")
    cluster = load_cluster(str(path))
    assert (cluster.settings("package").cpu, cluster.settings("evaluate").cpu) == ("2", "0.5")
    assert cluster.settings("evaluate").memory == "2147483648"
    assert cluster_defaults(str(path))[1]["train_cpu"] == "3"


def test_a_file_that_is_not_there_names_the_known(tmp_path: Path):
    with pytest.raises(InputError, match="Choose one of: cpu, gpu"):
        load_cluster(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(InputError, match="is not a mapping"):
        load_cluster(str(tmp_path / "list.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(InputError, match="is not YAML"):
        load_cluster(str(tmp_path / "broken.yaml"))
