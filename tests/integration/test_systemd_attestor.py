"""The systemd attestor against D-Bus peers that speak the real protocol, and over a real message bus."""

import os
import socket
import subprocess
import threading
import time

import pytest
from jeepney import new_method_return

from attestors import dbus
from attestors.procfs import ProcFs
from attestors.workload.systemd import SystemdAttestor, SystemdPorts, SystemdSettings
from spiffe_core.errors import ConfigError, Unauthenticated, Unavailable
from spiffe_core.wire.peer import named_process
from tests.doubles.systemd_manager import Manager, dbus_daemon, on_bus, private_socket, real_bus
from tests.interop.peers import lacking

WEB = ("web.service", "/etc/systemd/system/web.service")
DENIED = "org.freedesktop.DBus.Error.AccessDenied"
BOTH = {"systemd:id:web.service", "systemd:fragment_path:/etc/systemd/system/web.service"}


@pytest.fixture
def process():
    """A process of our own, held as the front door holds a caller."""
    with subprocess.Popen(["sleep", "600"]) as started:
        peer = named_process(started.pid)
        yield peer
        peer.process.close()
        started.kill()


@pytest.fixture
def manager(tmp_path, process):
    with private_socket(tmp_path / "systemd", Manager({process.pid: WEB})) as serving:
        yield serving


def attestor(path, *, bus=False, **ports):
    return SystemdAttestor(SystemdSettings(f"unix://{path}", private_socket=not bus), SystemdPorts(**ports))


def soon(seconds=10.0):
    return time.monotonic() + seconds


def values(findings):
    return {str(one) for one in findings.selectors}


def test_a_process_of_a_unit_gets_spires_selectors_by_its_pidfd(manager, tmp_path, process):
    """spire_features 18.1."""
    findings = attestor(tmp_path / "systemd").attest(process, soon())
    assert (values(findings), findings.notes) == (BOTH, ())
    assert manager.asked == ["GetUnitByPIDFD", "Get", "Get"]


@pytest.mark.parametrize("error", ["org.freedesktop.DBus.Error.UnknownMethod", DENIED])
def test_an_older_systemd_or_bus_policy_is_asked_by_number(manager, tmp_path, process, error):
    manager.older(error)
    assert values(attestor(tmp_path / "systemd").attest(process, soon())) == BOTH
    assert manager.asked == ["GetUnitByPIDFD", "GetUnitByPID", "Get", "Get"]


def test_a_socket_that_passes_no_descriptors_is_asked_by_number(tmp_path, process):
    with private_socket(tmp_path / "systemd", Manager({process.pid: WEB}), descriptors=False) as manager:
        assert values(attestor(tmp_path / "systemd").attest(process, soon())) == BOTH
        assert manager.asked == ["GetUnitByPID", "Get", "Get"]


@pytest.mark.parametrize("older", [False, True])
def test_a_process_of_no_unit_has_no_selectors(manager, tmp_path, process, older):
    manager.units.clear()
    if older:
        manager.older()
    findings = attestor(tmp_path / "systemd").attest(process, soon())
    assert (findings.selectors, findings.notes) == (frozenset(), ("the process belongs to no systemd unit",))


def test_a_unit_that_was_read_from_no_file_has_its_name_alone(manager, tmp_path, process):
    manager.units[process.pid] = ("-.slice", "")
    findings = attestor(tmp_path / "systemd").attest(process, soon())
    assert values(findings) == {"systemd:id:-.slice"}
    assert findings.notes == ("fragment_path left out: the unit was read from no file",)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_process_that_ends_meanwhile_gets_nothing(manager, tmp_path, process, older, step):
    """S11, S12: before the unit is told and after, by descriptor and by number."""
    if older:
        manager.older()
    manager.before = [lambda: None] * step + [lambda: _end(process)]
    with pytest.raises(Unauthenticated, match="has ended"):
        attestor(tmp_path / "systemd").attest(process, soon())


def _end(process):
    os.kill(process.pid, 9)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_number_that_came_to_mean_another_process_is_not_believed(manager, tmp_path, process):
    """S10: the pidfd that is opened by number is only used while the caller's own pidfd says it lives."""
    _end(process)
    manager.units[os.getpid()] = WEB
    with pytest.raises(Unauthenticated):
        attestor(tmp_path / "systemd", hold=lambda _: os.pidfd_open(os.getpid())).attest(process, soon())
    assert manager.asked == []


def test_a_caller_that_cannot_be_seen_is_never_asked_about(manager, tmp_path):
    """S17: number 0 would be systemd's word for whoever asks."""

    class Unseen:
        pid, uid, gid = 0, 0, 0

        def require_alive(self):
            pass

    with pytest.raises(Unauthenticated):
        attestor(tmp_path / "systemd").attest(Unseen(), soon())
    assert manager.asked == []


@pytest.mark.parametrize("numbers", ["77\t1", "", None])
def test_a_listener_of_another_pid_namespace_is_not_asked_by_number(manager, tmp_path, process, numbers):
    """A number of ours is another process there; a descriptor is not, so only that is passed on."""
    folder = tmp_path / "proc" / str(os.getpid())
    folder.mkdir(parents=True)
    if numbers is not None:
        (folder / "status").write_text(f"Name:\tsystemd\nNSpid:\t{numbers}\nUid:\t0\n")
    made = attestor(tmp_path / "systemd", proc=ProcFs(tmp_path / "proc"))
    assert values(made.attest(process, soon())) == BOTH
    manager.older()
    with pytest.raises(Unavailable, match=r"another PID namespace|cannot be told"):
        made.attest(process, soon())
    assert "GetUnitByPID" not in manager.asked


class TestTheBus:
    def test_a_refusal_is_unavailable_and_named(self, manager, tmp_path, process):
        manager.refusals = {"GetUnitByPIDFD": DENIED, "GetUnitByPID": DENIED}
        with pytest.raises(Unavailable, match="AccessDenied"):
            attestor(tmp_path / "systemd").attest(process, soon())

    def test_one_that_is_not_there_is_unavailable(self, tmp_path, process):
        with pytest.raises(Unavailable, match="No such file"):
            attestor(tmp_path / "systemd").attest(process, soon())

    def test_one_that_hangs_costs_the_budget_and_no_more(self, manager, tmp_path, process):
        """N-A-25."""
        release = threading.Event()
        manager.before = [lambda: release.wait(20)]
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"cannot be asked|in time"):
            attestor(tmp_path / "systemd").attest(process, soon(0.3))
        assert time.monotonic() - began < 10
        release.set()

    def test_one_that_does_not_accept_costs_the_budget_and_no_more(self, tmp_path, process):
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(str(tmp_path / "systemd"))
            deaf.listen(0)
            with pytest.raises(Unavailable, match=r"cannot be asked|in time"):
                attestor(tmp_path / "systemd").attest(process, soon(0.2))

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n" + data,
            lambda data: data[:4] + (2**27).to_bytes(4, "little") + data[8:],
            lambda data: data[:16] + b"\xff" * (len(data) - 16),
            lambda data: data[:1] + b"\x09" + data[2:],
            lambda data: data[:-3],
            lambda data: b"",
        ],
        ids=["http", "too-long", "fields", "type", "cut-short", "silence"],
    )
    def test_nonsense_is_unavailable(self, manager, tmp_path, process, spoil):
        manager.spoils = spoil
        with pytest.raises(Unavailable):
            attestor(tmp_path / "systemd").attest(process, soon(0.5))

    def test_answers_that_were_not_asked_for_are_passed_over_and_counted(self, manager, tmp_path, process):
        """A bus may send signals; a flood of them ends the conversation before the deadline."""
        manager.spoils = lambda data: _for_nobody(data) * 3 + data
        assert values(attestor(tmp_path / "systemd").attest(process, soon())) == BOTH
        manager.spoils = lambda data: _for_nobody(data) * dbus.MAX_PASSED_OVER
        with pytest.raises(Unavailable, match="does not answer what it was asked"):
            attestor(tmp_path / "systemd").attest(process, soon())

    def test_an_answer_of_another_shape_is_unavailable(self, manager, tmp_path, process):
        manager._answer = _strange
        with pytest.raises(Unavailable, match="cannot be read"):
            attestor(tmp_path / "systemd").attest(process, soon())

    def test_another_user_is_refused_by_name(self, tmp_path, process, monkeypatch):
        with private_socket(tmp_path / "systemd", Manager({process.pid: WEB})):
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
            with pytest.raises(Unavailable, match="refuses to authenticate"):
                attestor(tmp_path / "systemd").attest(process, soon())

    def test_one_that_speaks_something_else_is_unavailable(self, tmp_path, process):
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(tmp_path / "systemd"))
            other.listen()

            def babble():
                connection, _ = other.accept()
                with connection:
                    connection.sendall(b"220 mail.example.org ESMTP " + b"x" * 5000)
                    connection.recv(1)

            talking = threading.Thread(target=babble)
            talking.start()
            with pytest.raises(Unavailable, match="no D-Bus socket"):
                attestor(tmp_path / "systemd").attest(process, soon())
            talking.join()


@pytest.fixture
def bus(tmp_path):
    if dbus_daemon() is None:
        lacking("systemd", "dbus-daemon is not installed")
    with real_bus(tmp_path) as path:
        yield path


class TestARealBus:
    @pytest.mark.parametrize("older", [False, True])
    def test_the_unit_is_told_over_it(self, bus, process, older):
        manager = Manager({process.pid: WEB})
        with on_bus(bus, manager.older() if older else manager):
            assert values(attestor(bus, bus=True).attest(process, soon())) == BOTH

    def test_many_threads_ask_at_the_same_time(self, bus, process):
        found = []
        with on_bus(bus, Manager({process.pid: WEB})):
            made = attestor(bus, bus=True)
            threads = [threading.Thread(target=lambda: found.append(made.attest(process, soon(30)))) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [values(one) for one in found] == [BOTH] * 20

    def test_a_bus_without_systemd_is_unavailable_until_it_is_there(self, bus, process):
        """An agent that starts before systemd's name is taken, and systemd re-executing itself."""
        made = attestor(bus, bus=True)
        with pytest.raises(Unavailable, match=r"ServiceUnknown|NameHasNoOwner"):
            made.attest(process, soon())
        with on_bus(bus, Manager({process.pid: WEB})):
            assert values(made.attest(process, soon())) == BOTH


@pytest.mark.parametrize("path", ["/run/dbus/system_bus_socket", "unix://run/bus", "tcp:host=localhost,port=1"])
def test_wrong_sockets_are_refused(path):
    with pytest.raises(ConfigError):
        SystemdSettings(path)


def _for_nobody(data):
    """The same message, as the answer to another call: reply_serial is the first header field that is a number."""
    header = data.index(b"\x05\x01u\x00")
    return data[: header + 4] + (9999).to_bytes(4, "little") + data[header + 8 :]


def _strange(call):
    return new_method_return(call, "u", (5,))
