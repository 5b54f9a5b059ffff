"""What systemd hears of a daemon (sd_notify(3)), on a real datagram socket."""

import asyncio
import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from spiffe_core.runtime.systemd import MOST_STATUS_BYTES, SystemdNotifier
from spiffe_core.runtime.watchdog import Watchdog


@pytest.fixture
def manager():
    """(socket, its environment)."""
    with tempfile.TemporaryDirectory(prefix="sd") as folder:
        path = Path(folder) / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(path))
            listener.settimeout(20)
            yield listener, {"NOTIFY_SOCKET": str(path)}


def test_ready_and_stopping_are_told(manager):
    listener, environ = manager
    notifier = SystemdNotifier(environ, time.monotonic)
    notifier.ready("serving\nMAINPID=1 " + "x" * 1000)
    told = listener.recv(4096).decode().splitlines()
    assert told[0] == "READY=1"
    assert told[1].startswith("STATUS=serving MAINPID=1 xxx"), "a line cannot be smuggled in"
    assert len(told[1]) == len("STATUS=") + MOST_STATUS_BYTES
    assert len(told) == 2
    notifier.stopping()
    assert listener.recv(4096).startswith(b"STOPPING=1\n")


def test_signs_of_life_come_three_times_within_the_watchdogs_time(manager):
    listener, environ = manager
    now = [0.0]
    notifier = SystemdNotifier(environ | {"WATCHDOG_USEC": "30000000"}, lambda: now[0])
    sent = 0
    listener.setblocking(False)
    for _ in range(300):
        notifier.alive()
        now[0] += 0.25
        try:
            assert listener.recv(64) == b"WATCHDOG=1\n"
            sent += 1
        except BlockingIOError:
            continue
    assert 7 <= sent <= 8


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid() + 1)}],
    ids=["no watchdog", "nonsense", "another process"],
)
def test_no_sign_of_life_is_sent_to_who_does_not_wait_for_it(manager, environ):
    listener, socket_of = manager
    SystemdNotifier(socket_of | environ, time.monotonic).alive()
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.recv(64)


def test_without_a_service_manager_or_after_it_is_gone_nothing_happens(tmp_path):
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}, {"NOTIFY_SOCKET": "@nobody-listens-here"}):
        SystemdNotifier(environ | {"WATCHDOG_USEC": "1000000"}, time.monotonic).ready("x")


async def test_signs_of_life_stop_while_the_loop_hangs_and_come_back(manager):
    """R16: systemd restarts a daemon whose loop does not come back."""
    listener, environ = manager
    notifier = SystemdNotifier(environ | {"WATCHDOG_USEC": "1000"}, time.monotonic)
    dog = Watchdog(time.monotonic, beat=0.005, slow=0.05, blocked=0.1, alive=notifier.alive)
    dog.start()
    assert await asyncio.to_thread(listener.recv, 64) == b"WATCHDOG=1\n"
    began = time.monotonic()
    while not dog.blocked:  # this holds up the loop
        assert time.monotonic() - began < 20
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            listener.recv(64)
    time.sleep(0.05)
    with pytest.raises(BlockingIOError):
        listener.recv(64)
    listener.setblocking(True)
    listener.settimeout(20)
    assert await asyncio.to_thread(listener.recv, 64) == b"WATCHDOG=1\n"
    dog.close()
