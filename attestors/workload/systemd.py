"""Which systemd unit a process belongs to (spire_features section 18.1; org.freedesktop.systemd1(5)).

Selectors, both of type `systemd`: `id:<unit>` and `fragment_path:<file the unit was read from>`. A unit that was read
from no file, such as a slice, has no `fragment_path`.

systemd is asked over D-Bus, and decides by the process's control group, which only root or a unit's own delegation can
arrange. How the process it answers for cannot be another one:

1. From version 253 on it is handed a pidfd (`GetUnitByPIDFD`). The descriptor is opened by number, and the pidfd of the
   connection is asked afterwards: a process that still lives still has its number, so both are of the same process.
2. Before 253, or where the bus keeps that method from the agent, it is asked by number (`GetUnitByPID`), and the pidfd
   is asked before and after. A number means something else in another PID namespace, so whoever listens on the socket
   must be a process of the agent's own.
3. After the last answer the pidfd is asked once more.

Units may be changed and processes moved at any time, so nothing is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jeepney import DBusAddress, new_method_call

from attestors.api import Findings, Subject
from attestors.dbus import Connection, ErrorReply
from attestors.procfs import ProcFs
from attestors.sources import Source
from spiffe_core.errors import ConfigError, InvalidRequest, Unauthenticated, Unavailable
from spiffe_core.selectors import Selector

TYPE = "systemd"
_PREFIX = "unix://"
_NAME = "org.freedesktop.systemd1"
_MANAGER = DBusAddress("/org/freedesktop/systemd1", bus_name=_NAME, interface=f"{_NAME}.Manager")
_UNITS = "/org/freedesktop/systemd1/unit/"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_NO_UNIT = f"{_NAME}.NoUnitForPID"
_ERROR = "org.freedesktop.DBus.Error"
_NOT_OFFERED = frozenset({f"{_ERROR}.UnknownMethod", f"{_ERROR}.AccessDenied"})
"""An older systemd, or an older bus policy, which does not list the method."""


@dataclass(frozen=True, slots=True)
class SystemdSettings:
    """Where systemd is asked. `private_socket`: it listens there itself, without a bus (/run/systemd/private)."""

    dbus_socket_path: str = "unix:///run/dbus/system_bus_socket"
    private_socket: bool = False

    def __post_init__(self) -> None:
        if not self.dbus_socket_path.startswith(f"{_PREFIX}/"):
            raise ConfigError("attestors.systemd.dbus_socket_path: must be unix:// and an absolute path", field=TYPE)


@dataclass(frozen=True, slots=True)
class SystemdPorts:
    """Where processes are, and how one is held."""

    proc: ProcFs = field(default_factory=ProcFs)
    hold: Callable[[int], int] = os.pidfd_open


class SystemdAttestor:
    """Asks the system's service manager. Safe to call from several threads."""

    name: ClassVar[str] = TYPE
    Settings = SystemdSettings

    def __init__(self, settings: SystemdSettings | None = None, ports: SystemdPorts | None = None) -> None:
        self._settings = settings or SystemdSettings()
        self._ports = ports or SystemdPorts()
        self._path = self._settings.dbus_socket_path.removeprefix(_PREFIX)
        self._systemd = Source()

    @property
    def trouble(self) -> str:
        """Why systemd could not tell, and what to do."""
        return self._systemd.trouble

    def attest(self, subject: Subject, deadline: float) -> Findings:
        """Ask for the unit `subject` belongs to now.

        Raises:
            Unauthenticated: the process has ended.
            Unavailable: systemd cannot be asked, does not answer by `deadline`, or counts processes differently.
        """
        if subject.pid <= 0:  # systemd would answer for whoever asks
            raise Unauthenticated("the caller's process cannot be seen from the agent's PID namespace")
        with self._systemd.asked():
            findings = self._ask(subject, deadline)
        subject.require_alive()
        return findings

    def _ask(self, subject: Subject, deadline: float) -> Findings:
        with Connection(self._path, deadline, bus=not self._settings.private_socket) as connection:
            try:
                unit = self._unit(connection, subject)
                return _findings(*(_property(connection, unit, name) for name in ("Id", "FragmentPath")))
            except ErrorReply as error:
                subject.require_alive()
                if error.name == _NO_UNIT:
                    return Findings(frozenset(), ("the process belongs to no systemd unit",))
                raise Unavailable(f"{self._path}: systemd refuses to tell the unit: {error.name}") from None

    def _unit(self, connection: Connection, subject: Subject) -> str:
        """The object path of the unit."""
        if connection.passes_descriptors:
            try:
                return _object_path(self._by_descriptor(connection, subject))
            except ErrorReply as error:
                if error.name not in _NOT_OFFERED:
                    raise
        self._require_same_numbers(connection)
        subject.require_alive()
        answer = connection.call(new_method_call(_MANAGER, "GetUnitByPID", "u", (subject.pid,)))
        subject.require_alive()
        return _object_path(answer)

    def _by_descriptor(self, connection: Connection, subject: Subject) -> tuple[Any, ...]:
        try:
            held = self._ports.hold(subject.pid)
        except OSError as error:
            subject.require_alive()
            raise Unavailable("the calling process cannot be held", error=str(error)) from error
        try:
            subject.require_alive()
            return connection.call(new_method_call(_MANAGER, "GetUnitByPIDFD", "h", (held,)))
        finally:
            os.close(held)

    def _require_same_numbers(self, connection: Connection) -> None:
        """A process number is only passed on to somebody who counts as the agent does.

        Raises:
            Unavailable: the other side is in another PID namespace, or it cannot be told.
        """
        pid, depth = connection.peer_pid, 0
        if pid > 0:
            try:
                with self._ports.proc.process(pid) as listener:
                    depth = listener.pid_namespace_depth()
            except (OSError, ValueError) as error:
                raise Unavailable(f"{self._path}: who listens there cannot be told", error=str(error)) from error
        if depth != 1:
            raise Unavailable(
                f"{self._path}: belongs to another PID namespace, where process numbers mean other processes; "
                "run the agent in systemd's own (hostPID, pid: host), or use systemd 253 or newer"
            )


def _property(connection: Connection, unit: str, name: str) -> str:
    where = DBusAddress(unit, bus_name=_NAME, interface=_PROPERTIES)
    match connection.call(new_method_call(where, "Get", "ss", (f"{_NAME}.Unit", name))):
        case (("s", str(value)),):
            return value
        case _:
            raise Unavailable(f"systemd's answer about the unit's {name} cannot be read")


def _object_path(answer: tuple[Any, ...]) -> str:
    """The first value of either method's answer."""
    match answer:
        case (str(path), *_) if path.startswith(_UNITS):
            return path
        case _:
            raise Unavailable("systemd's answer about the process's unit cannot be read")


def _findings(unit_id: str, fragment_path: str) -> Findings:
    if not unit_id:
        raise Unavailable("systemd told a unit without a name")
    selectors, notes = set(), []
    for kind, value in (("id", unit_id), ("fragment_path", fragment_path)):
        if not value:
            notes.append(f"{kind} left out: the unit was read from no file")
            continue
        try:
            selectors.add(Selector(TYPE, f"{kind}:{value}"))
        except InvalidRequest as error:
            notes.append(f"{kind} left out: {error.public}")
    return Findings(frozenset(selectors), tuple(notes))
