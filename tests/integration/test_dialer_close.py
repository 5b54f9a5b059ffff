"""A dialer that closes leaves no socket behind, whatever its connections were doing at that moment (A5, A7)."""

import asyncio
import os
import socket

import pytest

from spiffe_core.clock import SystemClock
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.server_proof import DialTrust

TRUST = DialTrust(SpiffeId.parse("spiffe://example.org/spire/server"), None)


def open_sockets():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return {one for one in found if one.startswith("socket:")}


@pytest.mark.parametrize("rounds", range(9))
async def test_a_dialer_closed_while_it_joins_a_connection_closes_it(rounds):
    """Not taken yet, cancelled before the first step, and while the server says nothing: all is closed on return, once and again."""
    with socket.socket() as silent, socket.socket(socket.AF_UNIX) as client:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        before = open_sockets()
        dialer = Dialer(*silent.getsockname(), trust=lambda: TRUST, identity=lambda: None, now=SystemClock().now)
        await dialer.start()
        client.setblocking(False)
        client.connect(dialer.local_path)
        for _ in range(rounds):
            await asyncio.sleep(0)
        await dialer.close()
        await dialer.close()
        assert open_sockets() == before
