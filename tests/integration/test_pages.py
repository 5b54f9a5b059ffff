"""The small HTTP listener for probes and Prometheus: what it answers, and what it refuses to be made to do."""

import http.client
import socket
import time

import pytest

from spiffe_core.errors import ConfigError
from spiffe_core.runtime import pages
from spiffe_core.runtime.pages import Page, Pages


def broken():
    raise RuntimeError("secret reason")


@pytest.fixture
def address():
    served = Pages({"/live": lambda: Page(b"{}"), "/ready": lambda: Page(b'{"a":1}', ok=False), "/broken": broken})
    yield served.listen("127.0.0.1", 0, field="health_checks.bind_port")
    served.close()
    served.close()


def ask(address, path, method="GET"):
    connection = http.client.HTTPConnection(*address, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())
    finally:
        connection.close()


def test_a_page_is_answered_with_its_type_and_never_cached(address):
    status, body, headers = ask(address, "/live?verbose=1")
    assert (status, body) == (200, b"{}")
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]


def test_a_page_that_is_not_well_answers_500_with_its_body(address):
    assert ask(address, "/ready")[:2] == (500, b'{"a":1}')


def test_head_has_no_body(address):
    assert ask(address, "/live", "HEAD")[:2] == (200, b"")


@pytest.mark.parametrize("path", ["/", "/live/", "/../live", "/LIVE", "http://x/live"])
def test_other_paths_do_not_exist(address, path):
    assert ask(address, path)[:2] == (404, b"Not Found\n")


def test_other_methods_are_not_served_and_nothing_of_the_request_comes_back(address):
    status, body, _ = ask(address, "/live", "<script>")
    assert status == 501
    assert b"script" not in body


def test_a_page_that_cannot_be_made_says_nothing_about_why(address):
    assert ask(address, "/broken")[:2] == (500, b"Internal Server Error\n")


def test_a_huge_request_line_is_refused(address):
    with socket.create_connection(address, timeout=5) as raw:
        raw.sendall(b"GET /" + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n")
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(100).startswith((b"HTTP/1.0 414", b"HTTP/1.1 414"))


def test_silent_connections_take_no_more_than_their_share_and_are_cut(address, monkeypatch):
    """S52: who connects and says nothing holds one of sixteen places for a bounded time; others are hung up on."""
    monkeypatch.setattr(pages, "LONGEST_SECONDS", 0.2)
    idle = [socket.create_connection(address, timeout=10) for _ in range(40)]
    try:
        for one in idle:
            assert one.recv(1) == b""
    finally:
        for one in idle:
            one.close()
    deadline = time.monotonic() + 5
    while True:
        try:
            assert ask(address, "/live")[0] == 200
            return
        except (OSError, http.client.HTTPException):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_taken_port_is_a_configuration_error_that_names_the_key(address):
    with pytest.raises(ConfigError, match=r"health_checks\.bind_port: 127\.0\.0\.1:\d+ cannot be bound"):
        Pages({}).listen(*address, field="health_checks.bind_port")
