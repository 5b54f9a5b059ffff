"""Both daemons under a service manager: they say when they are ready, that they live, and that they stop (sd_notify(3))."""

import socket

import pytest

from deploy.demo.stack import LocalStack


@pytest.fixture
def manager(tmp_path_factory):
    """Where a service manager listens."""
    path = tmp_path_factory.mktemp("sd") / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(30)
        yield listener, str(path)


def hear(listener, word):
    """Listen until a message begins with `word`; what came before it."""
    before = []
    while True:
        said = listener.recv(4096).decode()
        if said.startswith(word):
            return before
        before.append(said.splitlines()[0])


@pytest.mark.slow
def test_the_daemons_tell_their_service_manager_how_they_are(manager, monkeypatch):
    """Type=notify with WatchdogSec, as in deploy/systemd."""
    listener, path = manager
    with LocalStack("notify.test") as stack:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setenv("WATCHDOG_USEC", "1500000")
        for start in (stack.start_server, stack.start_agent):
            daemon = start()
            hear(listener, "READY=1\nSTATUS=serving ")
            assert set(hear(listener, "WATCHDOG=1")) <= {"WATCHDOG=1"}
            if daemon is stack.server:
                monkeypatch.delenv("NOTIFY_SOCKET")
                stack.prepare_join()
                monkeypatch.setenv("NOTIFY_SOCKET", path)
                daemon.stop()
                assert set(hear(listener, "STOPPING=1")) <= {"WATCHDOG=1"}
                monkeypatch.delenv("NOTIFY_SOCKET")
                stack.start_server()
                monkeypatch.setenv("NOTIFY_SOCKET", path)
        stack.agent.stop()
        hear(listener, "STOPPING=1")
