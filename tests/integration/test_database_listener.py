"""What hears PostgreSQL's notifications in a process with very many open files (A8, R24)."""

import fcntl
import os
import resource
import socket
import threading

import pytest

from identity_server.store.postgresql import Listener

HIGH = 2_000
"""Above 1,023, where select(2) ends; a server with a few hundred agents gets there."""


class Line:
    """A connection to a database, as far as a listener uses it, on a descriptor with a high number."""

    def __init__(self):
        ours, self.far = socket.socketpair()
        self._descriptor = fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH)
        ours.close()

    def execute(self, statement):
        assert statement == "LISTEN muniment_log"

    def fileno(self):
        return self._descriptor

    def notifies(self, timeout):
        assert timeout == 0
        yield from os.read(self._descriptor, 1)

    def close(self):
        os.close(self._descriptor)


@pytest.fixture
def many_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert before[1] >= 2 * HIGH, f"this system allows {before[1]} open files; a server needs more too (ulimit -Hn)"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2 * HIGH), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_connection_made_again_beside_two_thousand_others_is_listened_to(many_files):
    """R24: the database was restarted under a busy server; notifications arrive again, nothing is polled for."""
    lines, rung = [], threading.Semaphore(0)

    def connect():
        lines.append(Line())
        return lines[-1]

    listener = Listener(connect, rung.release)
    listener.start()
    try:
        assert rung.acquire(timeout=20), "once after LISTEN"
        for _ in range(3):
            lines[0].far.send(b"n")
            assert rung.acquire(timeout=20)
        assert len(lines) == 1, "it did not have to connect again"
    finally:
        listener.close(20)
        for line in lines:
            line.far.close()
