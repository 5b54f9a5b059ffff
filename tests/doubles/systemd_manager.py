"""systemd's Manager and Unit objects over real D-Bus: alone on a socket, as on /run/systemd/private, or on a real bus.

What it answers is documented in org.freedesktop.systemd1(5). `before` holds steps that are taken before the next calls
are answered; `asked` the methods that were called.
"""

import shutil
import socket
import subprocess
import threading
from contextlib import ExitStack, contextmanager, suppress

from jeepney import DBusAddress, HeaderFields, MessageType, Parser, new_error, new_method_call, new_method_return
from jeepney.fds import FileDescriptor, fds_buf_size
from jeepney.io.blocking import open_dbus_connection

from spiffe_core.runtime.unix_sockets import peer_credentials

NAME = "org.freedesktop.systemd1"
UNITS = "/org/freedesktop/systemd1/unit/"
UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod"


class Manager:
    """`units` maps a process number to a unit's id and the file it was read from."""

    def __init__(self, units=()):
        self.units = dict(units)
        self.refusals = {}
        """Errors by the name of a method: GetUnitByPIDFD refused as unknown is systemd 252."""
        self.asked, self.before = [], []
        self.spoils = lambda reply: reply

    def older(self, error=UNKNOWN_METHOD):
        """systemd before 253, or a bus policy of that time."""
        self.refusals["GetUnitByPIDFD"] = error
        return self

    def answer(self, call):
        """The reply to a method call; descriptors that came with it are closed."""
        with ExitStack() as held:
            for one in call.body:
                if isinstance(one, FileDescriptor):
                    held.enter_context(one)
            return self._answer(call)

    def _answer(self, call):
        member = call.header.fields[HeaderFields.member]
        self.asked.append(member)
        for step in self.before[:1]:
            self.before.remove(step)
            step()
        if member in self.refusals:
            return new_error(call, self.refusals[member])
        if member == "Hello":
            return new_method_return(call, "s", (":1.1",))
        if member == "GetUnitByPID":
            return self._unit(call, call.body[0], full=False)
        if member == "GetUnitByPIDFD":
            return self._unit(call, _pid_of(call.body[0].fileno()), full=True)
        if member == "Get":
            found = self._by_path(call.header.fields[HeaderFields.path])
            return new_method_return(call, "v", (("s", found[("Id", "FragmentPath").index(call.body[1])]),))
        return new_error(call, UNKNOWN_METHOD)

    def _unit(self, call, pid, *, full):
        if pid not in self.units:
            return new_error(call, f"{NAME}.NoUnitForPID", "s", (f"PID {pid} does not belong to any loaded unit.",))
        unit = self.units[pid][0]
        if full:
            return new_method_return(call, "osay", (_path_of(unit), unit, b"i" * 16))
        return new_method_return(call, "o", (_path_of(unit),))

    def _by_path(self, path):
        return next(unit for unit in self.units.values() if path == _path_of(unit[0]))


def _path_of(unit):
    """A unit's object path, escaped as sd_bus_path_encode(3) does."""
    return UNITS + "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)


def _pid_of(fd):
    with open(f"/proc/self/fdinfo/{fd}") as info:
        return next(int(line[4:]) for line in info if line.startswith("Pid:"))


@contextmanager
def private_socket(path, manager, *, descriptors=True):
    """`manager` behind a socket of its own."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    open_ones, threads = [], []

    def accept():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_ones.append(connection)
                threads.append(threading.Thread(target=_serve, args=(connection, manager, descriptors), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield manager
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for connection in open_ones:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)


def _serve(connection, manager, descriptors):
    with connection, suppress(OSError):
        if not _authenticated(connection, descriptors):
            return
        parser, serial = Parser(), 0
        while True:
            data, ancillary, _, _ = connection.recvmsg(parser.bytes_desired(), fds_buf_size())
            if not data:
                return
            parser.add_data(data, FileDescriptor.from_ancdata(ancillary))
            while (call := parser.get_next_message()) is not None:
                serial += 1
                connection.sendall(manager.spoils(manager.answer(call).serialise(serial=serial)))


def _authenticated(connection, descriptors):
    """The server's side of the handshake (D-Bus specification, Authentication Protocol), as strict as systemd's own.

    What comes together with BEGIN is lost, and a descriptor that does ends the connection.
    """
    rest = b""
    while True:
        while b"\r\n" not in rest:
            data, ancillary, _, _ = connection.recvmsg(4096, fds_buf_size())
            for one in FileDescriptor.from_ancdata(ancillary):
                one.close()
            if not data or ancillary:
                return False
            rest += data
        line, rest = rest.lstrip(b"\0").split(b"\r\n", 1)
        if line == b"BEGIN":
            return True
        if line.startswith(b"AUTH EXTERNAL "):
            uid = peer_credentials(connection).uid
            if bytes.fromhex(line.split()[2].decode()).decode() != str(uid):
                connection.sendall(b"REJECTED EXTERNAL\r\n")
                return False
            connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
        elif line == b"NEGOTIATE_UNIX_FD":
            connection.sendall(b"AGREE_UNIX_FD\r\n" if descriptors else b"ERROR\r\n")


def dbus_daemon():
    """The real bus's program; None where it is not installed."""
    return shutil.which("dbus-daemon")


@contextmanager
def real_bus(folder):
    """A message bus of its own in `folder`, for this user; its socket."""
    path = folder / "bus"
    configuration = folder / "bus.conf"
    configuration.write_text(
        "<!DOCTYPE busconfig PUBLIC '-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN'"
        " 'http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd'><busconfig>"
        f"<listen>unix:path={path}</listen><auth>EXTERNAL</auth><policy context='default'><allow send_destination='*'"
        " eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/></policy></busconfig>"
    )
    argv = [dbus_daemon(), f"--config-file={configuration}", "--nofork", "--nopidfile", "--print-address"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            assert process.stdout.readline(), "the bus did not start"
            yield path
        finally:
            process.kill()


@contextmanager
def on_bus(path, manager):
    """`manager` as the owner of systemd's name on the bus at `path`."""
    connection = open_dbus_connection(f"unix:path={path}", enable_fds=True)
    bus = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
    owned = connection.send_and_get_reply(new_method_call(bus, "RequestName", "su", (NAME, 4)), timeout=10)
    assert owned.body == (1,)

    def serve():
        with suppress(OSError):
            while True:
                call = connection.receive()
                if call.header.message_type is MessageType.method_call:
                    connection.send(manager.answer(call))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield manager
    finally:
        connection.sock.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        connection.close()
