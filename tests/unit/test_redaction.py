"""Addresses are shown without what may be secret in them."""

import pytest

from stillhouse.redaction import holds_credentials, redacted, without_secrets


@pytest.mark.parametrize(
    ("address", "shown", "secret"),
    [
        ("https://ada:pw@host:8443/rows.csv", "https://***@host:8443/rows.csv", True),
        ("https://token@host/rows.csv", "https://***@host/rows.csv", True),
        ("https://host:8443/rows@home.csv?X-Signature=abc", "https://host:8443/rows@home.csv?***", False),
        ("s3://AKIA:ab/cd@bucket/rows", "s3://***@bucket/rows", True),
        ("s3://bucket/rows@home.csv", "s3://bucket/rows@home.csv", False),
        ("postgresql://ada:pw@host/db?password=pw", "postgresql://***@host/db?***", True),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://***@account.dfs.core.windows.net/x", False),
        ("hub://imdb@main:plain", "hub://imdb@main:plain", False),
        ("demo://reviews?rows=9", "demo://reviews?rows=9", False),
        ("scratch://bert?layers=2", "scratch://bert?layers=2", False),
        ("rows@home.csv", "rows@home.csv", False),
    ],
)
def test_an_address_and_what_is_shown_of_it(address: str, shown: str, secret: bool):
    assert redacted(address) == shown
    assert redacted({"settings": [f"data={address}", 1]}) == {"settings": [f"data={shown}", 1]}
    assert holds_credentials(address) is secret


def test_keys_of_the_environment_are_not_shown():
    environment = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountName=teamstorage;AccountKey=c2VjcmV0a2V5==;EndpointSuffix=example",
        "MLFLOW_TRACKING_PASSWORD": "",
        "GOOGLE_APPLICATION_CREDENTIALS": "/var/secrets/key.json",
        "SOME_TOKEN": "a",
        "AWS_ENDPOINT_URL": "http://minio:9000",
    }
    said = "a teamstorage: wJalrXUtnFEMI, c2VjcmV0a2V5==, /var/secrets/key.json, http://minio:9000"
    shown = "a teamstorage: ***, ***, /var/secrets/key.json, http://minio:9000"
    assert without_secrets(said, environment) == shown
