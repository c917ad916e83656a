"""When a version is not rolled out, and what is on record then; rollouts themselves are in tests/serving and e2e."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse.artifacts import EvaluationManifest
from stillhouse.deploy import DeployConfig, Rollout, roll_out
from stillhouse.deploy import config as config_module
from stillhouse.errors import InputError
from stillhouse.progress import Step
from stillhouse.registry import MlflowRegistry

STEP = Step("deploy")
NUMBERS = itertools.count(1)
PROMOTED = {"decision": "promote", "reason": "It is significantly better.", "mode": "better", "champion_version": "1"}
REFUSED = PROMOTED | {"decision": "keep", "reason": "It is not more than noise."}


@pytest.fixture(scope="module")
def registry(new_mlflow: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> MlflowRegistry:
    return MlflowRegistry(new_mlflow(tmp_path_factory.mktemp("registry")))


class Model:
    """A registered model with three versions, the first of them champion, and a run's record for the last."""

    def __init__(self, registry: MlflowRegistry, folder: Path) -> None:
        self.registry, self.folder = registry, folder
        self.name = f"reviews-{next(NUMBERS)}"
        self.run = f"run-of-{self.name}"
        client = registry.client()
        client.create_registered_model(self.name)
        for version in ("1", "2", "3"):
            tags = {"stillhouse.manifest_digest": version * 64, "stillhouse.run_digest": f"run-{version}"}
            client.create_model_version(self.name, "stillhouse:/nowhere", tags=tags)
        registry.set_alias(self.name, "champion", "1")
        record = {"model_name": self.name, "model_version": "3"}
        registry.record_outcome(self.run, "registered", "So far.", experiment="stillhouse", tags=record)

    def roll_out(self, promotion: dict[str, Any], *, deployable: bool = True, **settings: Any) -> Rollout:
        EvaluationManifest(
            producer="evaluate", task="classification", metric="accuracy", policy="quality", min_retention=0.97,
            test_rows=1, baselines=[], candidates=[], machine={},
            choice={"promotion": promotion, "deployable": deployable},
        ).save(self.folder)  # fmt: skip
        values = {"version": "3", "deploy_target": "local", "deploy_conflict": "yield", "home": self.folder / "home"}
        wait_s = settings.pop("wait_s", 1800.0)
        config = DeployConfig(model_name=self.name, tracking_uri=self.registry.uri, **{**values, **settings})
        return roll_out(
            config, registry=self.registry, evaluation_dir=self.folder, pipeline_run=self.run, step=STEP, wait_s=wait_s
        )

    def stays(self, done: Rollout, outcome: str, version: str = "3") -> bool:
        """Whether nothing was deployed, and the record says just what was returned."""
        record = self.registry.run_record(self.run)
        tags = self.registry.tags(self.name, version)
        said = [(record.outcome, record.reason), (tags["outcome"], tags["outcome_reason"])] if record else []
        champion = self.registry.get_alias(self.name, "champion")
        return champion == "1" and done.endpoint == {} and said == [(outcome, done.reason)] * 2


@pytest.fixture
def model(registry: MlflowRegistry, tmp_path: Path) -> Model:
    return Model(registry, tmp_path)


def test_what_was_not_promoted_stays_challenger_with_the_reason(model: Model) -> None:
    done = model.roll_out(REFUSED)
    assert (done.outcome, done.reason) == ("challenger", "It is not more than noise.")
    assert model.stays(done, "challenger")
    # Whether anything was to be deployed or not.
    assert model.roll_out(REFUSED, deploy_target="none").outcome == "challenger"


def test_what_may_not_be_served_stays_challenger(model: Model) -> None:
    done = model.roll_out(PROMOTED | {"reason": "It does not beat tf-idf."}, deployable=False)
    assert model.stays(done, "challenger") and done.reason == "It does not beat tf-idf."


def test_nothing_is_deployed_unless_asked_for(model: Model) -> None:
    done = model.roll_out(PROMOTED, deploy_target="none")
    assert model.stays(done, "registered")
    assert "deploy_target is none" in done.reason and "significantly better" in done.reason


def test_a_champion_that_changed_meanwhile_was_not_compared_with(model: Model) -> None:
    done = model.roll_out(PROMOTED | {"champion_version": "2"})
    assert model.stays(done, "challenger")
    assert "The champion changed to version 1 while this run was under way" in done.reason


def test_another_product_of_the_same_parameters_is_no_reason_to_deploy(model: Model) -> None:
    model.registry.client().set_model_version_tag(model.name, "3", "stillhouse.run_digest", "run-1")
    done = model.roll_out(PROMOTED | {"champion_version": ""})
    assert model.stays(done, "challenger") and "was made from the same data with the same parameters" in done.reason


def test_the_champion_itself_is_kept(model: Model) -> None:
    model.registry.set_alias(model.name, "champion", "3")
    done = model.roll_out(REFUSED, deploy_target="none")
    assert (done.outcome, model.registry.get_alias(model.name, "champion")) == ("kept", "3")


@pytest.fixture
def other_run(model: Model) -> Iterator[threading.Event]:
    """Another run that is deploying the model until the event is set."""
    held, over = threading.Event(), threading.Event()

    def deploy() -> None:
        with model.registry.deploy_lock(model.name, holder="run other", wait_s=0, step=STEP):
            held.set()
            over.wait(60)
            model.registry.set_alias(model.name, "champion", "2")

    thread = threading.Thread(target=deploy)
    thread.start()
    held.wait(60)
    yield over
    over.set()
    thread.join()


def test_who_yields_says_to_whom(model: Model, other_run: threading.Event) -> None:
    done = model.roll_out(PROMOTED, deploy_conflict="yield")
    assert model.stays(done, "challenger")
    assert f"Another run, other, is deploying {model.name}." in done.reason


def test_who_waits_in_vain_stays_challenger(model: Model, other_run: threading.Event) -> None:
    done = model.roll_out(PROMOTED, deploy_conflict="wait", wait_s=0.5)
    assert model.stays(done, "challenger") and "is deploying" in done.reason


def test_who_waits_finds_another_champion_then(model: Model, other_run: threading.Event) -> None:
    threading.Timer(1.0, other_run.set).start()
    done = model.roll_out(PROMOTED, deploy_conflict="wait")
    assert done.outcome == "challenger" and "The champion changed to version 2" in done.reason
    assert model.registry.get_alias(model.name, "champion") == "2"


def test_a_rollout_that_fails_is_on_record(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "container_marker", lambda: "there is a /.dockerenv")
    (model.folder / "smoke.json").write_text('[{"text": "x"}]')
    with pytest.raises(InputError, match="inside a container"):
        model.roll_out(PROMOTED)
    record = model.registry.run_record(model.run)
    assert record is not None and record.outcome == "failed" and "Version 3 could not be deployed" in record.reason
    # The lock is free again.
    assert model.roll_out(PROMOTED | {"champion_version": "2"}).outcome == "challenger"
