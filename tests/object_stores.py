"""Object stores on this machine, for tests that read from one."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helm_binary import HelmMissing, installed_from_npm

AZURITE = "azurite@3.35.0"
ACCOUNT, ACCOUNT_KEY = "testaccount", "dGVzdC1rZXktb2YtdGhlLWVtdWxhdG9yLW9ubHk="


@contextmanager
def s3(bucket: str) -> Iterator[Any]:
    """Moto's S3 with an empty bucket; the environment leads there. Yields an fsspec file system."""
    server_module = pytest.importorskip("moto.server")
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with environment(settings):
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir(bucket)
        yield store
        # Moto keeps what it holds in this process, for whoever starts it here again.
        store.invalidate_cache()
        store.rm(bucket, recursive=True)
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@contextmanager
def gcs(bucket: str) -> Iterator[Any]:
    """An emulator of Google's store, with an empty bucket; the environment leads there. Yields a file system."""
    server_module = pytest.importorskip("gcp_storage_emulator.server")
    import gcsfs

    port = free_port()
    server = server_module.create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    server.start()
    try:
        with environment({"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}):
            gcsfs.GCSFileSystem.clear_instance_cache()
            yield gcsfs.GCSFileSystem()
            gcsfs.GCSFileSystem.clear_instance_cache()
    finally:
        server.stop()


@contextmanager
def azure(container: str, folder: Path) -> Iterator[Any]:
    """Azurite with an empty container, its files in `folder`; the environment leads there. Yields a file system."""
    adlfs = pytest.importorskip("adlfs")
    try:
        command = installed_from_npm(AZURITE) / "dist/src/blob/main.js"
    except HelmMissing as missing:
        pytest.skip(str(missing))
    port = free_port()
    settings = {
        "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};"
        f"AccountKey={ACCOUNT_KEY};BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    }
    with (folder / "log").open("w") as log, environment({"AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"}):
        process = subprocess.Popen(
            ["node", command, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", folder, "--silent",
             "--skipApiVersionCheck", "--disableTelemetry"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        for _ in range(150):
            assert process.poll() is None, (folder / "log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        with environment(settings):
            adlfs.AzureBlobFileSystem.clear_instance_cache()
            store = adlfs.AzureBlobFileSystem()
            store.mkdir(container)
            yield store
            adlfs.AzureBlobFileSystem.clear_instance_cache()
    finally:
        process.kill()
        process.wait()


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
