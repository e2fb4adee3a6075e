"""Addresses: what is shown of them never holds a credential."""

from __future__ import annotations

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.cluster.coordinator import CoordinatorConfig
from pft_ray.errors import InputError
from pft_ray.ledger.postgres_url import PostgresUrl, postgres_url, redacted

SECRET = "s3cretWORD"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://me:{SECRET}@h:5432/db", "postgresql://h:5432/db"),
        (f"postgres://h/db?password={SECRET}", "postgresql://h/db"),
        (f"postgresql://me:{SECRET}@a:1,b:2/db", "postgresql://a:1,b:2/db"),
        (f"postgresql://me:{SECRET}@[::1]:5/db", "postgresql://[::1]:5/db"),
        ("postgresql:///db?host=/run/pg", "postgresql:///db?host=/run/pg"),
        (f"mysql://me:{SECRET}@h/db", "mysql://***"),
        ("ledger.db", "ledger.db"),
    ],
)
def test_what_is_shown(url, shown):
    assert redacted(url) == shown


@given(st.text(string.ascii_letters + "/?#@:&=%", max_size=6))
def test_no_password_is_shown_however_it_is_written(mark):
    for password in (f"{SECRET}{mark}{SECRET}", quote(f"{SECRET}{mark}", safe="")):
        for url in (
            f"postgresql://me:{password}@h/db",
            f"postgresql://h/db?password={password}",
            f"postgresql://h/db?user=a@b&password={password}",
        ):
            assert SECRET not in redacted(url)
            try:
                read = postgres_url(url)
                shown = repr(read) + str(read)
            except InputError as error:
                shown = str(error)
            assert SECRET not in shown


def test_a_drivers_message_is_scrubbed():
    url = PostgresUrl(f"postgresql://someone:{SECRET}@h/db")
    assert url.scrub(f"bad {SECRET} of someone") == "bad *** of ***"


def test_the_coordinators_settings_print_without_the_address():
    config = CoordinatorConfig(f"postgresql://me:{SECRET}@h/db", "k", "run", "a")
    assert SECRET not in repr(config)
