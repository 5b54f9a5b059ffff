"""Who is at the other end of a Unix socket, as the kernel lays it down (unix(7))."""

import struct

import pytest

from spiffe_core.runtime.unix_sockets import Credentials, read_credentials


@pytest.mark.parametrize(
    ("pid", "uid", "gid"),
    [(4_194_304, 1000, 100), (1, 2**32 - 2, 2**32 - 2), (0, 2**31, 2**31), (0, 2**32 - 1, 2**32 - 1)],
    ids=["usual", "nobody of old", "the sign bit", "nobody at all"],
)
def test_users_and_groups_are_never_negative(pid, uid, gid):
    """WEP-17, WAPI-06: uid 4294967294 is a user; read with a sign it would be -2, and equal to no number that /proc shows."""
    assert read_credentials(struct.pack("=iII", pid, uid, gid)) == Credentials(pid, uid, gid)
