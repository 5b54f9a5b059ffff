"""Why a socket could not be reached, in words (one line what, one line what to do)."""

import errno
import os

import pytest

from identity_server.cli.server import SERVER
from node_agent.cli.endpoint import AGENT
from spiffe_core.terminal.connection import _no_connection


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
    failure = _no_connection("/s", OSError(code, os.strerror(code)), daemon)
    assert failure.what.startswith(what)
    assert advice.format(name=daemon.name, start=daemon.start) in failure.advice
    assert failure.final is final


def test_a_timeout_is_no_answer():
    assert _no_connection("/s", TimeoutError(), SERVER).what == "cannot connect to /s: no answer"
