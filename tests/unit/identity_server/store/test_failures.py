"""What a driver's error means (R29)."""

import sqlite3

import pytest
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError

from identity_server.store.failures import Nature, nature_of, refusal_of
from spiffe_core.errors import Conflict, CorruptState, Internal, Unavailable


class DriverError(Exception):
    """An exception as the drivers raise them: PostgreSQL's have `sqlstate`, SQLite's `sqlite_errorcode`."""

    def __init__(self, *args: object, **attributes: object) -> None:
        super().__init__(*args)
        self.__dict__.update(attributes)


def wrapped(original: Exception, kind: type[DBAPIError] = OperationalError) -> DBAPIError:
    return kind("SELECT secret", {"secret": "value"}, original)


@pytest.mark.parametrize(
    ("error", "nature"),
    [
        *((wrapped(DriverError(sqlite_errorcode=code)), Nature.TRANSIENT) for code in (5, 6, 261, 517)),
        *((wrapped(DriverError(sqlite_errorcode=code)), Nature.STARVED) for code in (8, 10, 13, 14, 1034, 4874)),
        *((wrapped(DriverError(sqlite_errorcode=code)), Nature.CORRUPT) for code in (11, 26, 267)),
        *((wrapped(DriverError(sqlite_errorcode=code)), Nature.FAULT) for code in (1, 21)),
        *((wrapped(DriverError(sqlstate=state)), Nature.TRANSIENT) for state in ("40001", "40P01", "55P03")),
        *(
            (wrapped(DriverError(sqlstate=state)), Nature.STARVED)
            for state in ("08006", "53100", "57P01", "58030", "25006", "25P03", "28P01")
        ),
        (wrapped(DriverError(sqlstate="42P01"), ProgrammingError), Nature.FAULT),
        *((wrapped(DriverError(number, "text")), Nature.TRANSIENT) for number in (1213, 1205, 1020)),
        *(
            (wrapped(DriverError(number, "text")), Nature.STARVED)
            for number in (1021, 2006, 2013, 1045, 1053, 1290, 1792, 1927, 1969, 1047)
        ),
        (wrapped(DriverError(1205, "lock wait", sqlstate="HY000")), Nature.TRANSIENT),
        (wrapped(DriverError(1927, "killed", sqlstate="70100")), Nature.STARVED),
        (wrapped(DriverError(1064, "syntax"), ProgrammingError), Nature.FAULT),
        (wrapped(sqlite3.OperationalError("the connection was lost")), Nature.STARVED),
        (wrapped(DriverError("gone"), InterfaceError), Nature.STARVED),
        (wrapped(DriverError("odd"), ProgrammingError), Nature.FAULT),
        (wrapped(DriverError(sqlite_errorcode=2067), IntegrityError), Nature.CONSTRAINT),
        (ArgumentError("ours"), Nature.FAULT),
    ],
)
def test_the_nature_of_an_error(error, nature: Nature) -> None:
    assert nature_of(error) is nature


@pytest.mark.parametrize(
    ("code", "kind"), [(5, Unavailable), (13, Unavailable), (11, CorruptState), (1, Internal), (2067, Conflict)]
)
def test_what_the_caller_is_told_holds_no_statement_and_no_values(code: int, kind: type) -> None:
    error = wrapped(
        DriverError("disk image", sqlite_errorcode=code), IntegrityError if code == 2067 else OperationalError
    )
    refusal = refusal_of(error, "/data/store.sqlite3")
    assert type(refusal) is kind
    shown = f"{refusal.public} {refusal.facts}"
    assert "secret" not in shown
    assert "value" not in shown
    assert refusal.facts["cause"] == "disk image"


def test_a_damaged_database_is_named() -> None:
    refusal = refusal_of(wrapped(DriverError(sqlite_errorcode=11)), "/data/store.sqlite3")
    assert "/data/store.sqlite3" in refusal.public
    assert "restore" in refusal.public
