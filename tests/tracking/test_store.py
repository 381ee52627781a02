"""Addresses of stores: which are refused at once, and what is kept of them."""

from __future__ import annotations

import sys

import pytest

from recsys.tracking.store import TrackingError, check_address, without_password


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "https://me:x@host/mlflow", "sqlite:///a b.db", "sqlite:////a.db"]
)
def test_addresses(uri: str) -> None:
    check_address(uri)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("localhost:5000", "Did you mean http://localhost:5000?"),
        ("postgres://me:secret@h/db", r"Did you mean postgresql://me:\*\*\*@h/db\?"),
        ("postgresql//me:secret@h", r"postgresql//me:\*\*\*@h is no address"),
        ("mlruns", "mlruns is no address of a tracking store: those of servers begin with http"),
        ("file:///mlruns", "is no address of a tracking store"),
        ("postgresql+secret://h/x", "is no address of a database: Can't load plugin"),
    ],
)
def test_what_is_no_address(uri: str, words: str) -> None:
    with pytest.raises(TrackingError, match=words):
        check_address(uri)


def test_a_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(TrackingError, match=r"psycopg2.*pip install psycopg2-binary"):
        check_address("postgresql+psycopg2://me:secret@h/db")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("in https://me:secret@host/x?y=1.", "in https://me:***@host/x?y=1."),
        (
            "postgresql://h/db?user=u&password=secret&x=1",
            "postgresql://h/db?user=u&password=***&x=1",
        ),
        ("postgresql://h/db?PWD=secret", "postgresql://h/db?PWD=***"),
        ("postgresql//me:secret@h", "postgresql//me:***@h"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:///a@b:c.db", "sqlite:///a@b:c.db"),
    ],
)
def test_passwords_are_left_out(text: str, shown: str) -> None:
    assert without_password(text) == shown
