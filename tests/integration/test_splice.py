"""How a joined connection ends: what grpcio wrote last reaches the peer, whatever the peer is saying (R6, N-A-35)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
import uvloop

from spiffe_core.wire.splice import LINGER_SECONDS, Splice

LAST_WORDS = b"status: restarting " * 400


class Joined:
    """A client and a backend with a splice between them."""

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.client, near = socket.socketpair()
        far, self.backend = socket.socketpair()
        self.gone = asyncio.Event()
        self.closed = asyncio.Event()
        self.splice = Splice(buffer=64 * 1024, stall=5, on_close=self.closed.set, on_gone=self.gone.set)
        await loop.create_unix_connection(lambda: self.splice.near, sock=near)
        await loop.create_unix_connection(lambda: self.splice.far, sock=far)
        for end in (self.client, self.backend):
            end.setblocking(False)
        return self

    async def __aexit__(self, *_):
        self.splice.abort()
        await self.gone.wait()
        self.client.close()
        self.backend.close()

    async def read_to_the_end(self):
        loop = asyncio.get_running_loop()
        found = b""
        while data := await loop.sock_recv(self.client, 65_536):
            found += data
        return found


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    def on_loop(test):
        async def joined():
            async with asyncio.timeout(20), Joined() as pair:
                await test(pair)

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(joined())

    return on_loop


def test_a_client_that_talks_into_a_closed_backend_still_hears_its_last_words(run):
    """R6: the failed write to the backend does not throw away what the backend wrote before it closed."""

    async def test(pair):
        pair.splice.far.transport.pause_reading()  # so that the client's words come first, every time
        pair.backend.sendall(LAST_WORDS)
        pair.backend.close()
        pair.client.sendall(b"window update")
        assert await pair.read_to_the_end() == LAST_WORDS

    run(test)


def test_a_client_may_go_on_talking_until_it_has_read_the_end(run):
    """A gRPC client whose write fails does not read on, so its writes do not fail before it closes."""

    async def test(pair):
        pair.backend.sendall(LAST_WORDS)
        pair.backend.close()
        await pair.closed.wait()
        pair.client.sendall(b"settings acknowledged")
        assert await pair.read_to_the_end() == LAST_WORDS
        pair.client.sendall(b"and so on")
        assert not pair.gone.is_set()
        pair.client.close()
        await pair.gone.wait()

    run(test)


def test_a_client_that_never_closes_is_cut_off(run):
    """N-A-35: the courtesy is bounded."""

    async def test(pair):
        pair.backend.close()
        start = time.monotonic()
        await pair.gone.wait()
        assert LINGER_SECONDS * 0.8 < time.monotonic() - start < 10
        assert await pair.read_to_the_end() == b""

    run(test)


def test_a_client_that_leaves_takes_the_backend_along(run):
    """What it had sent before is passed on."""

    async def test(pair):
        pair.client.sendall(LAST_WORDS)
        pair.client.close()
        await pair.gone.wait()
        found = b""
        while data := await asyncio.get_running_loop().sock_recv(pair.backend, 65_536):
            found += data
        assert found == LAST_WORDS

    run(test)


def test_a_peer_that_floods_while_it_is_being_let_go_costs_nothing(run):
    """R45: after the end of the backend the peer's bytes are read and dropped."""

    async def test(pair):
        pair.backend.close()
        await pair.closed.wait()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):  # if all this took longer than it may linger
            for _ in range(20):
                await loop.sock_sendall(pair.client, b"x" * 100_000)
        assert pair.splice.near.early == []

    run(test)
