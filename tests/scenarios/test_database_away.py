"""The real server as a process, with its database away at the start, and frozen together with what it holds (R25, R32)."""

import signal
import time
import uuid

import pytest

from deploy.demo.stack import LocalStack, NotStarted
from tests.databases import SHARED_KINDS
from tests.doubles.database_servers import new_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=SHARED_KINDS)
def database(request):
    server = new_server(request.param)
    yield server
    server.close()


@pytest.fixture
def stack(database):
    url = database.new_database(f"t{uuid.uuid4().hex[:20]}")
    with LocalStack("away.test", server=f'[database]\nurl = "{url}"') as stack:
        yield stack


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_starts_before_its_database_waits_for_it(database, stack):
    """R25: not ready, no crash loop, one line every five seconds; it serves as soon as the database is there."""
    database.stop_hard()
    try:
        server = stack.spawn_server()
        until(lambda: "cannot start yet, trying again in 5 s" in server.log.read_text())
        with pytest.raises(NotStarted):
            server.wait_serving(stack.admin_socket, seconds=0.5)
        assert server.process.poll() is None
        assert server.log.read_text().count("cannot start yet") == 1
    finally:
        database.start()
    server.wait_serving(stack.admin_socket)
    assert stack.admin_json("token", "generate")["value"]


def test_a_server_told_to_stop_while_it_waits_for_its_database_stops(database, stack):
    """R25: in order, with exit code 0."""
    database.stop_hard()
    try:
        server = stack.spawn_server()
        until(lambda: "cannot start yet" in server.log.read_text())
        assert server.stop() == 0
    finally:
        database.start()


def authority(stack):
    return stack.admin_json("localauthority", "x509", "show")["active"]["authority_id"]


def test_killed_or_frozen_it_comes_back_as_what_it_was(stack):
    """R1, R24, R32: kill -9 and a new start, then stopped and resumed: the same authority, the same entries, writes."""
    stack.start_server()
    first = authority(stack)
    made = stack.register("/before", "unix:uid:1")
    stack.server.kill()
    server = stack.start_server()
    assert authority(stack) == first
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)  # it stands still: nothing can be awaited of it
    server.process.send_signal(signal.SIGCONT)
    server.wait_serving(stack.admin_socket)
    assert authority(stack) == first
    later = stack.register("/after", "unix:uid:1")
    shown = {entry["id"] for entry in stack.admin_json("entry", "show")["entries"]}
    assert shown == {made, later}
