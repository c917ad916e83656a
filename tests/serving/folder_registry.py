"""A model registry kept in a folder, for tests of deploying."""

from __future__ import annotations

import shutil
from pathlib import Path

from stillhouse.artifacts import PackageManifest
from stillhouse.errors import RegistryError


class FolderRegistry:
    def __init__(self, packages: dict[str, Path]):
        self.packages = packages
        self.aliases: dict[tuple[str, str], str] = {}
        self.service: dict[tuple[str, str], str] = {}
        """Version in production, by model and place."""
        self.refuse_alias = False
        """Move the alias, then fail, as a registry does whose answer is lost."""

    def get_alias(self, name, alias):
        return self.aliases.get((name, alias))

    def set_alias(self, name, alias, version):
        self.aliases[name, alias] = version
        if self.refuse_alias:
            self.refuse_alias = False
            raise RegistryError("the registry is out of order")

    def delete_alias(self, name, alias):
        del self.aliases[name, alias]

    def begin_service(self, name, version, *, where):
        self.service[name, where] = version

    def end_service(self, name, *, where):
        self.service.pop((name, where), None)

    def fetch_package(self, name, version, destination):
        source = self.packages[version]
        PackageManifest.load(source).verify(source)
        return Path(shutil.copytree(source, destination))
