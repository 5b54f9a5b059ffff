"""SO_PEERCRED of real connections (unix(7))."""

import os
import socket
import subprocess
import sys

from spiffe_core.runtime.unix_sockets import peer_credentials
from tests.doubles.privileges import need_root

NOBODY_OF_OLD = 2**32 - 2
CONNECT = f"""
import os, socket
os.setresgid(*[{NOBODY_OF_OLD}] * 3)
os.setresuid(*[{NOBODY_OF_OLD}] * 3)
connection = socket.socket(socket.AF_UNIX)
connection.connect(NAME)
connection.recv(1)
"""


def test_the_kernel_names_this_process_at_both_ends():
    """WEP-17."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_credentials(ours) == peer_credentials(theirs) == (os.getpid(), os.geteuid(), os.getegid())


def test_the_last_of_all_users_is_known_by_its_number():
    """WEP-17, WAPI-06: uid 4294967294 connects, and is not taken for -2."""
    need_root()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # a name of the kernel's choice, outside the file system
        listener.listen()
        child = [sys.executable, "-c", CONNECT.replace("NAME", repr(listener.getsockname()))]
        with subprocess.Popen(child) as process:
            listener.settimeout(50)
            connection, _ = listener.accept()
            with connection:
                assert peer_credentials(connection) == (process.pid, NOBODY_OF_OLD, NOBODY_OF_OLD)
