"""Why a socket could not be reached, in words (one line what, one line what to do)."""

import errno
import os
import socket
from dataclasses import replace

import grpc
import pytest

from identity_server.cli.server import SERVER
from node_agent.cli.endpoint import AGENT
from spiffe_core.terminal.connection import _no_connection, failure_of


@pytest.mark.parametrize("daemon", [SERVER, AGENT], ids=lambda daemon: daemon.name)
@pytest.mark.parametrize(
    ("code", "what", "advice", "final"),
    [
        (errno.ENOENT, "there is no socket at /s", "start it with: {start}", False),
        (errno.ENOTDIR, "there is no socket at /s", "--socket-path", False),
        (errno.EACCES, "permission denied for /s", "the {name} belongs to", True),
        (errno.EPERM, "permission denied for /s", "the {name} belongs to", True),
        (errno.ECONNREFUSED, "nobody answers at /s", "start it with: {start}", False),
        (errno.EAGAIN, "cannot connect to /s", "start it with: {start}", True),
    ],
)
def test_each_reason_has_its_words(daemon, code, what, advice, final):
    failure = _no_connection("/s", OSError(code, os.strerror(code)), replace(daemon, usual=None))
    assert failure.what.startswith(what)
    assert advice.format(name=daemon.name, start=daemon.start) in failure.advice
    assert failure.final is final


def test_a_timeout_is_no_answer():
    assert _no_connection("/s", TimeoutError(), SERVER).what == "cannot connect to /s: no answer"


def test_the_socket_of_the_whole_machine_is_named_to_who_looked_elsewhere(tmp_path):
    """A user other than root is told where the daemon is, instead of to start another one."""
    usual = tmp_path / "api.sock"
    daemon = replace(AGENT, usual=usual)
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert "start it with" in _no_connection("/s", missing, daemon).advice
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(usual))
        assert (
            _no_connection("/s", missing, daemon).advice
            == f"this machine's agent has one at {usual}: name it with --socket-path"
        )


class Refused(grpc.RpcError):
    """What a stub raises when the daemon says PERMISSION_DENIED in these words."""

    def __init__(self, text):
        self.text = text

    def code(self):
        return grpc.StatusCode.PERMISSION_DENIED

    def details(self):
        return self.text

    def trailing_metadata(self):
        return ()


@pytest.mark.parametrize(
    ("told", "advice"),
    [
        ("no identity issued (0a1b2c3d)", "`node-agent explain 0a1b2c3d` tells"),
        ("no identity issued", "`node-agent explain ID` tells"),
        ("no identity issued (0a1b2c3d): explain ID", "`node-agent explain ID` tells"),
    ],
)
def test_a_refusal_is_to_be_asked_about_by_its_id(told, advice):
    assert advice in failure_of(Refused(told), AGENT).advice


def test_only_the_id_is_put_into_what_is_said_of_a_refusal():
    daemon = replace(AGENT, forbidden="ask for {id} or ID")
    assert failure_of(Refused("no (0a1b2c3d)"), daemon).advice == "ask for 0a1b2c3d or ID"
    assert failure_of(Refused("no (0a1b2c3d)"), SERVER).advice == SERVER.forbidden


def test_the_directory_that_keeps_a_user_out_is_named(monkeypatch):
    """The socket itself may be open to everybody, as that of the Workload API is."""
    refused = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in {"/run/closed", "/run/closed/agent"})
    failure = _no_connection("/run/closed/agent/api.sock", refused, AGENT)
    assert failure.what == "permission denied for /run/closed/agent/api.sock: this user may not enter /run/closed"
