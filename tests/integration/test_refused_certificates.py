"""A client certificate that is not believed leaves a line in the log: who came, why not, and never a flood of lines."""

import asyncio
import contextlib
import logging
import ssl
from datetime import timedelta

import pytest
import uvloop

from spiffe_core.wire.tls import client_context
from tests.authority import SpiffeTestCA
from tests.doubles.tls_domain import AGENT_ID, identity_of, listening

LOGGER = "spiffe_core.wire.acceptor"
OTHERS = 25


def certificates(ca):
    past = {"not_before": ca.now - timedelta(hours=2), "not_after": ca.now - timedelta(hours=1)}
    return {
        "a stranger's authority of the same name": (
            SpiffeTestCA("example.org").issue(AGENT_ID),
            ("certificate", "the client's certificate is not believed (", "authority, that is not known here"),
        ),
        "expired": (
            ca.issue(AGENT_ID, **past),
            ("certificate", "(certificate has expired)", "compare the clocks of both machines"),
        ),
        "not a SPIFFE ID's": (
            ca.issue(AGENT_ID, uris=(), dns=("agent.example.org",)),
            ("unauthenticated", "connection refused: ", "URI"),
        ),
    }


async def connect(domain, svid):
    """A whole connection with this certificate, until the server ends it; the address it came from."""
    context = client_context(identity_of(svid), domain.ca.bundle().x509_roots)
    reader, writer = await asyncio.open_connection("127.0.0.1", domain.port, ssl=context)
    host, port = writer.get_extra_info("sockname")[:2]
    with contextlib.suppress(OSError, ssl.SSLError):
        async with asyncio.timeout(20):
            await reader.read()
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
    return f"{host}:{port}"


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine on an event loop of either kind."""

    def in_loop(coroutine):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return in_loop


def lines(caplog):
    return [one for one in caplog.records if one.name == LOGGER]


@pytest.mark.parametrize("case", certificates(SpiffeTestCA("example.org")))
def test_a_refused_certificate_is_told_with_its_address_and_the_reason(run, caplog, case):
    """S3, N-X-01, N-X-02, N-X-12: an operator finds out why a node has no connection."""
    caplog.set_level(logging.INFO, LOGGER)

    async def refuse():
        async with listening() as domain:
            svid, words = certificates(domain.ca)[case]
            address = await connect(domain, svid)
            async with asyncio.timeout(20):
                while not lines(caplog):
                    await asyncio.sleep(0.01)
            return address, words, dict(domain.door.refused)

    address, (kind, *texts), refused = run(refuse())
    (line,) = lines(caplog)
    assert line.levelno == logging.WARNING
    assert all(text in line.getMessage() for text in texts), line.getMessage()
    assert line.facts["address"] == address
    assert refused == {kind: 1}


def test_whoever_is_refused_again_and_again_writes_no_log_full(run, caplog):
    """S50: one line for the address, and the next window's first line says how many had none."""
    caplog.set_level(logging.INFO, LOGGER)

    async def flood():
        async with listening() as domain:
            stranger = SpiffeTestCA("example.org").issue(AGENT_ID)
            for _ in range(OTHERS):
                await connect(domain, stranger)
            async with asyncio.timeout(20):
                while domain.door.refused["certificate"] < OTHERS:
                    await asyncio.sleep(0.01)
            (acceptor,) = domain.door._acceptors
            assert len(lines(caplog)) == 1
            acceptor._lines._until = 0.0
            await connect(domain, stranger)
            async with asyncio.timeout(20):
                while len(lines(caplog)) < 2:
                    await asyncio.sleep(0.01)

    run(flood())
    first, second = lines(caplog)
    assert "refusals_without_a_line" not in first.facts
    assert second.facts["refusals_without_a_line"] == OTHERS - 1
