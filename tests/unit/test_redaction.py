"""Addresses are shown without what may be secret in them."""

import pytest

from stillhouse.redaction import holds_credentials, redacted


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
