"""Registered models in MLflow: on a SQLite file beside the runs, or on a tracking server."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from stillhouse.artifacts import ModelManifest, PackageManifest, sha256_file
from stillhouse.errors import InputError, ManifestError, RegistryError
from stillhouse.evaluation.table import CHAMPION
from stillhouse.progress import Step
from stillhouse.registry.connection import Connection
from stillhouse.registry.lock import DeployLock
from stillhouse.registry.pretraining import (
    PretrainingRecord,
    RecordedPretraining,
    copy_checkpoint,
    log_pretraining,
)
from stillhouse.registry.register import (
    PACKAGE_PATH,
    TAG_PREFIX,
    RegisterConfig,
    RegisteredVersion,
    check_inputs,
    log_and_register,
)
from stillhouse.registry.run_record import RunRecord, download_evaluation, find_run, leave_run
from stillhouse.registry.service import ServicePeriod, begin_period, end_periods, read_periods
from stillhouse.registry.tracking import as_default, redact, registry_errors

__all__ = ["MlflowRegistry", "RegisteredChampion"]

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class RegisteredChampion:
    """What the alias `champion` points to."""

    version: str
    digest: str
    """sha256 of its package's manifest."""
    fingerprint: str
    """Of the source that it was trained on."""
    run_digest: str
    """Of everything that shaped it; see `stillhouse.inspection`. Empty where an earlier release registered it."""


class MlflowRegistry(Connection):
    """One model registry; made of the same arguments as a `Connection`."""

    def register(
        self,
        config: RegisterConfig,
        *,
        dataset_dir: str | os.PathLike[str],
        packages: Sequence[Path],
        models: Sequence[Path],
        evaluation_dir: str | os.PathLike[str],
        step: Step,
    ) -> RegisteredVersion:
        """Register the chosen package as a model version with all its lineage, and give it the alias `challenger`.

        A package that is a version of that name already is not registered again: its version is returned, with the
        tags of the present evaluation.

        Args:
            config: names, and the parameters of the run.
            dataset_dir: the `dataset` artifact that the packages were evaluated on.
            packages: the `packages` artifacts that were evaluated.
            models: the `model` artifacts that they were made from.
            evaluation_dir: the `evaluation` artifact.
            step: told how far the work is.

        Raises:
            InputError: a name is at fault, or the artifacts do not belong together; nothing was registered.
            RegistryError: MLflow refused or could not be reached.
        """
        inputs = check_inputs(config, Path(dataset_dir), packages, models, Path(evaluation_dir))
        if not self._initialised:
            self.initialise()
        with registry_errors(self.uri, f"register {config.model_name}"), self._lock("register"):
            client = self.client()
            experiment = self._experiment(config.experiment)
            existing = next((v for v in self._versions(config.model_name) if _digest(v) == inputs.package_digest), None)
            with as_default(self.uri) as mlflow:
                return log_and_register(mlflow, client, config, inputs, experiment, existing, step)

    def record_pretraining(
        self, config: PretrainingRecord, *, corpus_dir: Path, model_dir: Path, step: Step
    ) -> RecordedPretraining:
        """Write the settings and curves of a pretraining, and a copy of its checkpoint where one is wanted.

        Args:
            config: names, and where the copy goes.
            corpus_dir: the `corpus` artifact that it was trained on.
            model_dir: its `model` artifact.
            step: told how far the work is.

        Raises:
            InputError: a value is at fault, or the copy cannot be written.
            RegistryError: MLflow refused or could not be reached.
        """
        if problems := config.problems():
            raise InputError(problems)
        checkpoint = str(model_dir)
        if config.output:
            step.progress(0, 2, "copying the checkpoint")
            checkpoint = copy_checkpoint(model_dir, config.output)
        step.progress(1, 2, "writing the curves")
        if not self._initialised:
            self.initialise()
        with registry_errors(self.uri, "record the pretraining"), self._lock("register"), as_default(self.uri):
            experiment = self._experiment(config.experiment)
            run_id, reused = log_pretraining(
                self.client(), config, experiment, corpus_dir=corpus_dir, model_dir=model_dir
            )
        manifest = ModelManifest.load(model_dir)
        return RecordedPretraining(checkpoint=checkpoint, run_id=run_id, reused=reused, manifest=manifest)

    def get_alias(self, name: str, alias: str) -> str | None:
        """The version that an alias of a model points to; None where there is no such alias or model."""
        if self._absent():
            return None
        with registry_errors(self.uri, f"read the alias {alias} of {name}"):
            model = self._model(name)
            return str(model.aliases[alias]) if model is not None and alias in model.aliases else None

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version.

        Raises:
            RegistryError: there is no such version.
        """
        self._version(name, version)
        with registry_errors(self.uri, f"set the alias {alias} of {name}"):
            self.client().set_registered_model_alias(name, alias, version)

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; nothing happens where there is none."""
        if self.get_alias(name, alias) is not None:
            with registry_errors(self.uri, f"delete the alias {alias} of {name}"):
                self.client().delete_registered_model_alias(name, alias)

    def resolve(self, uri: str) -> tuple[str, str]:
        """Name and version of `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

        Raises:
            RegistryError: the URI is of another form, or there is no such model, alias or version.
        """
        match = _MODEL_URI.fullmatch(uri)
        if match is None:
            raise RegistryError(
                f"{redact(uri)!r} is not the URI of a registered model. Write models:/NAME@champion or models:/NAME/3."
            )
        name, alias, version = match["name"], match["alias"], match["version"]
        if version is not None:
            return name, str(self._version(name, str(int(version))).version)
        found = self.get_alias(name, alias)
        if found is None:
            self._refuse_unknown(name)
            with registry_errors(self.uri, f"read {name}"):
                others = sorted(self._model(name).aliases)
            has = f"It has {', '.join(others)}." if others else "It has none."
            raise RegistryError(f"The model {name} has no alias {alias!r}. {has} Or name a version: models:/{name}/1.")
        return name, found

    def tags(self, name: str, version: str) -> dict[str, str]:
        """Stillhouse's tags of a version, without their prefix.

        `manifest_digest`, `dataset_digest`, `evaluation_digest`, `model_digest.ROLE`, `deployable` (`true` or `false`),
        `undeployable_reason`, `policy`, `reason`, `candidate`, `precision` and others.

        Raises:
            RegistryError: there is no such version.
        """
        return _own_tags(self._version(name, version))

    def fetch_package(self, name: str, version: str, destination: Path) -> Path:
        """Download the package of a version into the folder `destination`, which is whole or not there.

        The sha256 of `package.json` is compared with the version's tag, and every file with `package.json`.

        Raises:
            RegistryError: there is no such version, Stillhouse did not register it, or its files were altered (each is
                named); also when `destination` holds something else.
            ManifestError: another release registered it, in a format that this one does not understand.
        """
        entry = self._version(name, version)
        expected = _digest(entry)
        if expected is None:
            raise RegistryError(
                f"Version {version} of {name} was not registered by Stillhouse: it has no package digest."
            )
        if destination.exists() and any(destination.iterdir()):
            self._check(destination, name, version, expected)
            return destination
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as work:
            with registry_errors(self.uri, f"fetch version {version} of {name}"), as_default(self.uri) as mlflow:
                uri = f"models:/{name}/{version}"
                found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=work))
            package = found / PACKAGE_PATH
            if not (package / PackageManifest.filename()).is_file():
                raise RegistryError(
                    f"The files of version {version} of {name} are gone from the registry's artifact store. "
                    "Restore them; or delete the version and run the pipeline again."
                )
            self._check(package, name, version, expected)
            if destination.exists():
                destination.rmdir()
            shutil.move(package, destination)
        return destination

    def champion(self, name: str) -> RegisteredChampion | None:
        """The version of a model that is deployed; None where there is none.

        Raises:
            RegistryError: the registry could not be read, or Stillhouse did not register that version.
        """
        version = self.get_alias(name, CHAMPION)
        if version is None:
            return None
        tags = self.tags(name, version)
        if "manifest_digest" not in tags:
            raise RegistryError(
                f"The champion of {name}, version {version}, was not registered by Stillhouse: it has no package "
                "digest. Delete its alias `champion`, or give another `model_name`."
            )
        fingerprint, run_digest = tags.get("dataset_fingerprint", ""), tags.get("run_digest", "")
        return RegisteredChampion(version, tags["manifest_digest"], fingerprint, run_digest)

    @contextmanager
    def deploy_lock(self, name: str, *, holder: str, wait_s: float, step: Step) -> Iterator[DeployLock]:
        """Be the only run that deploys this model; see `stillhouse.registry.lock`.

        Raises:
            LockBusy: another run held the lock for `wait_s` seconds.
            RegistryError: the registry refused, or could not be reached.
        """
        with DeployLock(self, name, holder).hold(wait_s=wait_s, step=step) as lock:
            yield lock

    def run_record(self, pipeline_run: str, destination: Path | None = None) -> RunRecord | None:
        """What a run of the pipeline left here, by the pipeline's own run id; None where it left nothing.

        Args:
            pipeline_run: what the orchestrator calls the run.
            destination: where to download its evaluation to; without it, nothing is downloaded.

        Raises:
            RegistryError: the registry could not be read.
        """
        if self._absent():
            return None
        with registry_errors(self.uri, f"read what the run {pipeline_run} left"), as_default(self.uri):
            record = find_run(self.client(), pipeline_run)
            return download_evaluation(self.client(), record, destination) if record and destination else record

    def record_outcome(
        self, pipeline_run: str, outcome: str, reason: str, *, experiment: str = "", run_name: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Say on the run's record what came of it, and on the model version where it has one.

        A run that has left no record yet gets a small one.

        Args:
            pipeline_run: what the orchestrator calls the run.
            outcome: one of `stillhouse.registry.OUTCOMES`.
            reason: why, in a sentence or two.
            experiment: where a new record goes.
            run_name: name of a new record; empty lets MLflow choose.
            tags: of a new record, without Stillhouse's prefix.

        Raises:
            RegistryError: the registry refused, or could not be reached.
        """
        found = {"outcome": outcome, "outcome_reason": reason}
        with registry_errors(self.uri, "record what came of the run"):
            client = self.client()
            record = find_run(client, pipeline_run)
            if record is None:
                everything = {**(tags or {}), **found, "pipeline_run": pipeline_run}
                leave_run(client, self._experiment(experiment), run_name, everything)
                return
            for key, value in found.items():
                client.set_tag(record.run_id, TAG_PREFIX + key, value)
                if record.version:
                    client.set_model_version_tag(record.model_name, record.version, TAG_PREFIX + key, value)

    def begin_service(self, name: str, version: str, *, where: str) -> None:
        """Record that a version is in production from now on.

        The period of another version that stands open at the same place ends; one of this very version goes on.

        Args:
            name: registered name.
            version: registered version.
            where: a short public name of the place: `local HOST`, `kubernetes NAMESPACE/RELEASE`.

        Raises:
            RegistryError: there is no such version, or the registry refused or could not be reached.
        """
        self._version(name, version)
        with registry_errors(self.uri, f"record that version {version} of {name} is in production"):
            begin_period(self.client(), self._versions(name), version, where)

    def end_service(self, name: str, *, where: str) -> None:
        """Record that no version of a model is in production at a place any more; nothing happens where none was.

        Raises:
            RegistryError: the registry refused, or could not be reached.
        """
        if not self._absent():
            with registry_errors(self.uri, f"record that {name} is not in production any more"):
                end_periods(self.client(), self._versions(name), where)

    def service_history(self, name: str) -> list[ServicePeriod]:
        """When each version of a model was in production, the newest period first; empty for an unknown model.

        Raises:
            RegistryError: the registry could not be read.
        """
        if self._absent():
            return []
        with registry_errors(self.uri, f"read when {name} was in production"):
            found = [period for entry in self._versions(name) for period in read_periods(entry)]
        # In a second with several, those of the newest version come first.
        return sorted(found, key=lambda period: (period.since, int(period.version)), reverse=True)

    def models(self) -> list[dict[str, Any]]:
        """Every version that Stillhouse registered: by name, the newest first.

        Keys: `name`, `version`, `aliases`, `candidate`, `precision`, `metric`, `quality`, `retention`, `p95_ms`,
        `bytes`, `policy`, `deployable`, `outcome`, `outcome_reason`, `created` (ISO 8601, UTC), `run_id`,
        `manifest_digest`.
        """
        if self._absent():
            return []
        rows = []
        with registry_errors(self.uri, "list the models"):
            for model in sorted(self._pages(self.client().search_registered_models), key=lambda m: str(m.name)):
                aliases: dict[str, list[str]] = {}
                for alias, version in model.aliases.items():
                    aliases.setdefault(str(version), []).append(alias)
                for entry in self._versions(model.name):
                    if _digest(entry) is not None:
                        rows.append(_describe(entry, sorted(aliases.get(str(entry.version), []))))
        return rows

    def _refuse_unknown(self, name: str) -> None:
        if self._absent():
            raise RegistryError(
                f"There is no model registry at {self._database}. Run the pipeline first: stillhouse run"
            )
        with registry_errors(self.uri, f"read {name}"):
            if self._model(name) is None:
                known = sorted({row["name"] for row in self.models()})
                has = f"It has: {', '.join(known)}." if known else "It is empty: run the pipeline first."
                raise RegistryError(f"The registry has no model {name!r}. {has}")

    def _version(self, name: str, version: str) -> Any:
        self._refuse_unknown(name)
        with registry_errors(self.uri, f"read version {version} of {name}"):
            versions = self._versions(name)
        found = next((entry for entry in versions if str(entry.version) == version), None)
        if found is None:
            has = ", ".join(str(entry.version) for entry in versions[:10]) or "none"
            raise RegistryError(f"The model {name} has no version {version}. It has: {has}.")
        return found

    @staticmethod
    def _check(folder: Path, name: str, version: str, expected: str) -> None:
        """Whether the files are those that were registered; a format that is not understood is another matter."""
        try:
            if (found := sha256_file(folder / PackageManifest.filename())) != expected:
                what = f"has sha256 {found[:12]}… where the version's tag says {expected[:12]}…."
                raise ManifestError(PackageManifest.filename(), what)
        except ManifestError as error:
            raise _altered(name, version, error) from None
        manifest = PackageManifest.load(folder)
        try:
            manifest.verify(folder)
        except ManifestError as error:
            raise _altered(name, version, error) from None


def _altered(name: str, version: str, error: ManifestError) -> RegistryError:
    return RegistryError(
        f"The package of version {version} of {name} is not what was registered: {error} Do not serve it."
    )


def _own_tags(entry: Any) -> dict[str, str]:
    return {k.removeprefix(TAG_PREFIX): str(v) for k, v in entry.tags.items() if k.startswith(TAG_PREFIX)}


def _digest(entry: Any) -> str | None:
    return _own_tags(entry).get("manifest_digest")


def _describe(entry: Any, aliases: list[str]) -> dict[str, Any]:
    tags = _own_tags(entry)

    def number(key: str) -> float | None:
        return float(tags[key]) if key in tags else None

    size = number("bytes")
    created = datetime.fromtimestamp(int(entry.creation_timestamp) / 1000, tz=timezone.utc)
    return {
        "name": entry.name,
        "version": str(entry.version),
        "aliases": aliases,
        "candidate": tags.get("candidate", ""),
        "precision": tags.get("precision", ""),
        "metric": tags.get("metric", ""),
        "quality": number("quality"),
        "retention": number("retention"),
        "p95_ms": number("p95_ms"),
        "bytes": None if size is None else int(size),
        "policy": tags.get("policy", ""),
        "deployable": tags.get("deployable") == "true",
        "outcome": tags.get("outcome", ""),
        "outcome_reason": tags.get("outcome_reason", ""),
        "created": created.isoformat(timespec="seconds"),
        "run_id": entry.run_id or "",
        "manifest_digest": tags["manifest_digest"],
    }
