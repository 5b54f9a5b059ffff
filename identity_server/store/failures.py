"""What a database error means: try again, tell the caller to try later, or it is broken.

The only place that reads drivers' error codes. `IntegrityError` becomes Conflict here and nowhere else.
"""

from __future__ import annotations

import enum

from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError

from spiffe_core.errors import Conflict, CorruptState, IdentityError, Internal, Unavailable

AWAY = "the database cannot be used at the moment; try again later"
_SQLITE_BUSY, _SQLITE_LOCKED, _SQLITE_READONLY, _SQLITE_IOERR = 5, 6, 8, 10
_SQLITE_CORRUPT, _SQLITE_FULL, _SQLITE_CANTOPEN, _SQLITE_NOTADB = 11, 13, 14, 26
_TRANSIENT_SQLITE = {_SQLITE_BUSY, _SQLITE_LOCKED}
_STARVED_SQLITE = {_SQLITE_READONLY, _SQLITE_IOERR, _SQLITE_FULL, _SQLITE_CANTOPEN}
_BROKEN_SQLITE = {_SQLITE_CORRUPT, _SQLITE_NOTADB}
_TRANSIENT_STATES = {"40001", "40P01", "55P03"}  # serialization failure, deadlock, lock not available
_STARVED_STATE_CLASSES = (
    "08",
    "28",
    "53",
    "57",
    "58",
)  # connection, password, resources, operator intervention, system error
_TRANSIENT_MYSQL = {1213, 1205, 1020}  # deadlock, lock wait timeout, record changed
_STARVED_STATES = {
    "25006",  # read-only: what was the primary is a standby now
    "25P03",  # we stood still inside a transaction for too long
}
_STARVED_MYSQL = {
    *(1021, 1037, 1041, 1114),  # disk full, out of memory, table full
    *(1040, 1129, 1203, 1226),  # too many connections, host blocked
    *(1044, 1045, 1130, 1698),  # access denied: the password is being changed
    *(1047, 1290, 1792, 1836),  # a Galera node that is not ready; read only after a fail-over
    *(1053, 1077, 1317, 1927, 1969),  # shutdown, killed, out of time
    *(1152, 1158, 1159, 1160, 1161, 4031),  # the network, or we stood still for too long
    *(2002, 2003, 2005, 2006, 2013, 2026, 2027, 2055),  # the driver's: cannot connect, connection lost
}


class Nature(enum.Enum):
    """What to do about a database error."""

    TRANSIENT = "transient"
    """Another transaction was in the way: run it again soon."""
    STARVED = "starved"
    """The database cannot write or be reached now (disk full, connection lost): tell the caller to try later."""
    CONSTRAINT = "constraint"
    """A uniqueness or integrity rule said no."""
    CORRUPT = "corrupt"
    """The file is damaged."""
    FAULT = "fault"
    """Our mistake."""


def nature_of(error: SQLAlchemyError) -> Nature:
    """Tell what kind of failure it is, by the driver's own code."""
    if isinstance(error, IntegrityError):
        return Nature.CONSTRAINT
    if not isinstance(error, DBAPIError):
        return Nature.FAULT
    nature = _by_driver(error.orig)
    if nature is None:
        lost = error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError))
        nature = Nature.STARVED if lost else Nature.FAULT
    return nature


def _by_driver(original: BaseException | None) -> Nature | None:
    """What the driver's code says; None if the error carries no code."""
    sqlite_code = getattr(original, "sqlite_errorcode", None)
    if isinstance(sqlite_code, int):
        return _by_code(sqlite_code & 0xFF, _TRANSIENT_SQLITE, _STARVED_SQLITE, _BROKEN_SQLITE)
    arguments = getattr(original, "args", ())
    if arguments and isinstance(arguments[0], int):  # before the state: newer drivers of MariaDB tell both
        return _by_code(arguments[0], _TRANSIENT_MYSQL, _STARVED_MYSQL, set())
    state = getattr(original, "sqlstate", None)
    if isinstance(state, str):
        if state in _TRANSIENT_STATES:
            return Nature.TRANSIENT
        starved = state in _STARVED_STATES or state.startswith(_STARVED_STATE_CLASSES)
        return Nature.STARVED if starved else Nature.FAULT
    return None


def _by_code(code: int, transient: set[int], starved: set[int], broken: set[int]) -> Nature:
    if code in transient:
        return Nature.TRANSIENT
    if code in starved:
        return Nature.STARVED
    return Nature.CORRUPT if code in broken else Nature.FAULT


def refusal_of(error: SQLAlchemyError, place: str) -> IdentityError:
    """What the caller is told. `place` names the database without credentials; details go to the facts."""
    nature, cause = nature_of(error), _cause(error)
    if nature is Nature.CONSTRAINT:
        return Conflict("it exists already, or something that must be unique does", cause=cause)
    if nature is Nature.CORRUPT:
        return CorruptState(f"database {place} is damaged: stop the server and restore it from a backup", cause=cause)
    if nature is Nature.FAULT:
        return Internal("internal error in the database", cause=cause, place=place)
    return Unavailable(AWAY, cause=cause, place=place)


def _cause(error: SQLAlchemyError) -> str:
    """The driver's message alone: SQLAlchemy's own text would repeat statement and parameters."""
    return str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__
