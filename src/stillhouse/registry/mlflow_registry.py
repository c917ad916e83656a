"""Registered models in MLflow: on a SQLite file beside the runs, or on a tracking server."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import PackageManifest, sha256_file
from stillhouse.errors import InputError, ManifestError, RegistryError
from stillhouse.progress import Step
from stillhouse.registry.register import (
    PACKAGE_PATH,
    TAG_PREFIX,
    RegisterConfig,
    RegisteredVersion,
    check_inputs,
    log_and_register,
)
from stillhouse.registry.tracking import (
    absolute_uri,
    as_default,
    form_problems,
    load_mlflow,
    redact,
    registry_errors,
    resolve_uri,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MlflowRegistry"]

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


class MlflowRegistry:
    """One model registry.

    Args:
        tracking_uri: `sqlite:///PATH/mlflow.db`, or the address of an MLflow server; empty takes what
            `MLFLOW_TRACKING_URI` says. On SQLite, artifacts are kept in
            `mlartifacts/` beside the database.

    Raises:
        InputError: the URI is of no kind that is understood.
    """

    def __init__(self, tracking_uri: str) -> None:
        uri = resolve_uri(tracking_uri)
        if problems := form_problems(uri):
            raise InputError(problems)
        self.uri = absolute_uri(uri)
        self._database = sqlite_path(self.uri)
        self._initialised = False

    def __repr__(self) -> str:
        return f"MlflowRegistry({redact(self.uri, self.uri)!r})"

    def initialise(self) -> None:
        """Create the database if it is not there. Any number of processes may call this at once.

        Left to itself, MLflow creates the tables when first used, and fails when several processes do that together.

        Raises:
            RegistryError: the folder is not writable, or the server does not answer.
        """
        with registry_errors(self.uri, "open the database"), self._lock("init"):
            self._client().search_experiments(max_results=1)
            self._client().search_registered_models(max_results=1)
        self._initialised = True

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
            client = self._client()
            experiment = self._experiment(config.experiment)
            existing = next((v for v in self._versions(config.model_name) if _digest(v) == inputs.package_digest), None)
            with as_default(self.uri) as mlflow:
                return log_and_register(mlflow, client, config, inputs, experiment, existing, step)

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
            self._client().set_registered_model_alias(name, alias, version)

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; nothing happens where there is none."""
        if self.get_alias(name, alias) is not None:
            with registry_errors(self.uri, f"delete the alias {alias} of {name}"):
                self._client().delete_registered_model_alias(name, alias)

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

    def models(self) -> list[dict[str, Any]]:
        """Every version that Stillhouse registered: by name, the newest first.

        Keys: `name`, `version`, `aliases`, `candidate`, `precision`, `metric`, `quality`, `retention`, `p95_ms`,
        `bytes`, `policy`, `deployable`, `created` (ISO 8601, UTC), `run_id`, `manifest_digest`.
        """
        if self._absent():
            return []
        rows = []
        with registry_errors(self.uri, "list the models"):
            for model in sorted(self._pages(self._client().search_registered_models), key=lambda m: str(m.name)):
                aliases: dict[str, list[str]] = {}
                for alias, version in model.aliases.items():
                    aliases.setdefault(str(version), []).append(alias)
                for entry in self._versions(model.name):
                    if _digest(entry) is not None:
                        rows.append(_describe(entry, sorted(aliases.get(str(entry.version), []))))
        return rows

    # -- MLflow, one level down ---------------------------------------------------------------------------------------

    def _client(self) -> MlflowClient:
        client: MlflowClient = load_mlflow().MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return client

    def _absent(self) -> bool:
        """Whether this is a database file that is not there: reading must not create one."""
        return self._database is not None and not self._database.exists()

    @contextmanager
    def _lock(self, what: str) -> Iterator[None]:
        """One process at a time, on a database file; a server locks for itself."""
        if self._database is None:
            with nullcontext():
                yield
            return
        from filelock import FileLock

        self._database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._database}.{what}.lock"):
            yield

    def _experiment(self, name: str) -> str:
        client = self._client()
        found = client.get_experiment_by_name(name)
        if found is None:
            # Without it, MLflow writes artifacts of a SQLite store to the working directory.
            place = (self._database.parent / "mlartifacts").as_uri() if self._database is not None else None
            from mlflow.exceptions import MlflowException

            try:
                return str(client.create_experiment(name, artifact_location=place))
            except MlflowException:
                found = client.get_experiment_by_name(name)  # another process was first
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"The experiment {name!r} was deleted. Restore it with `mlflow experiments restore -x "
                f"{found.experiment_id}`, or give another `experiment`."
            )
        return str(found.experiment_id)

    @staticmethod
    def _pages(search: Any, *arguments: Any) -> Iterator[Any]:
        token = None
        while True:
            page = search(*arguments, max_results=200, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _versions(self, name: str) -> list[Any]:
        """All versions of a model, the newest first."""
        quoted = name.replace("'", "''")
        found = self._pages(self._client().search_model_versions, f"name='{quoted}'")
        return sorted(found, key=lambda entry: -int(entry.version))

    def _model(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client().get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

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
        try:
            manifest = PackageManifest.load(folder)
            if (found := sha256_file(folder / PackageManifest.filename())) != expected:
                what = f"has sha256 {found[:12]}… where the version's tag says {expected[:12]}…."
                raise ManifestError(PackageManifest.filename(), what)
            manifest.verify(folder)
        except ManifestError as error:
            raise RegistryError(
                f"The package of version {version} of {name} is not what was registered: {error} Do not serve it."
            ) from None


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
        "created": created.isoformat(timespec="seconds"),
        "run_id": entry.run_id or "",
        "manifest_digest": tags["manifest_digest"],
    }
