"""The dialer: the server is its SPIFFE ID, proven in this very handshake, or nothing is said to it (A5, S2, S3)."""

import asyncio
import os
import ssl
import subprocess
import sys
from datetime import timedelta

import pytest

from spiffe_core.bundle import BundleSet
from spiffe_core.errors import Reason, Unauthenticated, Unavailable, VerificationFailed
from spiffe_core.wire import dialer as dialer_module
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.tls import load_identity
from tests.authority import CLIENT_AUTH, SpiffeTestCA
from tests.doubles.tls_domain import AGENT_ID, CLOCK, SERVER_ID, dialing, identity_of, listening, refused, who

BAD_SERVERS = {
    "another trust domain's": (lambda ca: ca.issue("spiffe://other.org/spire/server"), Reason.OTHER_TRUST_DOMAIN),
    "another ID of the domain": (lambda ca: ca.issue("spiffe://example.org/w"), Reason.UNEXPECTED_ID),
    "a stranger's CA": (lambda _: SpiffeTestCA("example.org").issue(SERVER_ID), Reason.UNKNOWN_AUTHORITY),
    "expired": (
        lambda ca: ca.issue(SERVER_ID, not_before=ca.now - timedelta(hours=2), not_after=ca.now - timedelta(hours=1)),
        Reason.EXPIRED,
    ),
    "expired a moment ago": (
        lambda ca: ca.issue(SERVER_ID, not_before=ca.now - timedelta(hours=2), not_after=ca.now - timedelta(seconds=2)),
        Reason.EXPIRED,
    ),
    "R19 from tomorrow on": (
        lambda ca: ca.issue(SERVER_ID, not_before=ca.now + timedelta(hours=2), not_after=ca.now + timedelta(hours=3)),
        Reason.NOT_YET_VALID,
    ),
    "R19 soon, but not for long": (
        lambda ca: ca.issue(
            SERVER_ID, not_before=ca.now + timedelta(minutes=1), not_after=ca.now + timedelta(minutes=2)
        ),
        Reason.EXPIRED,
    ),
    "clientAuth only": (lambda ca: ca.issue(SERVER_ID, eku=(CLIENT_AUTH,)), Reason.UNKNOWN_AUTHORITY),
    "two URIs": (lambda ca: ca.issue(SERVER_ID, uris=(str(SERVER_ID), "spiffe://example.org/b")), Reason.BAD_SPIFFE_ID),
}


@pytest.mark.parametrize("case", sorted(BAD_SERVERS))
async def test_the_dialer_believes_only_the_expected_server(case):
    """spire_wire 1.3: chain and exact ID, never the host name; the reason is told in words."""
    make, reason = BAD_SERVERS[case]
    async with listening() as domain, dialing(domain) as dialer:
        assert await who(dialer) == "tls anonymous"
        good, domain.identity = domain.identity, identity_of(make(domain.ca))
        await dialer.renew()
        error = await refused(dialer)
        assert isinstance(error, VerificationFailed)
        assert error.reason is reason
        assert ("compare the clocks" in error.public) == (reason in {Reason.EXPIRED, Reason.NOT_YET_VALID})
        domain.identity = good
        await dialer.renew()
        assert await who(dialer) == "tls anonymous"
        assert dialer.last_error is None


async def test_a_server_is_believed_a_little_before_its_time(caplog):
    """R19: for this machine's clock may be behind; its authority, its intermediate and its own certificate are young."""
    soon = timedelta(minutes=4)
    young = SpiffeTestCA("example.org", not_before=CLOCK.now() + soon, ttl=timedelta(hours=9))
    middle = young.intermediate(not_before=CLOCK.now() + soon, ttl=timedelta(hours=9))
    async with listening() as domain:
        domain.bundles = BundleSet(young.bundle(), {})
        domain.identity = identity_of(middle.issue(SERVER_ID, not_before=CLOCK.now() + soon))
        async with dialing(domain) as dialer:
            assert await who(dialer) == "tls anonymous"
            assert "clock" in caplog.text


async def test_insecure_bootstrap_compares_the_claimed_id_and_nothing_else():
    """spire_wire 1.3."""
    async with listening() as domain:
        domain.identity = identity_of(SpiffeTestCA("example.org").issue(SERVER_ID))
        async with dialing(domain, trust=lambda: DialTrust(SERVER_ID, None)) as dialer:
            assert await who(dialer) == "tls anonymous"
            domain.identity = identity_of(domain.ca.issue("spiffe://example.org/other"))
            await dialer.renew()
            assert (await refused(dialer)).reason is Reason.UNEXPECTED_ID


async def test_without_a_bundle_nothing_is_dialled():
    async with listening() as domain, dialing(domain, trust=lambda: DialTrust(SERVER_ID, lambda _: None)) as dialer:
        assert (await refused(dialer)).reason is Reason.NO_BUNDLE
        assert domain.door.open_connections == 0


async def test_a_server_that_is_away_is_named_in_words():
    async with listening() as domain:
        port = domain.port
    domain.port = port
    async with dialing(domain) as dialer:
        error = await refused(dialer)
        assert isinstance(error, Unavailable)
        assert str(port) in error.public


OWN_SVIDS = {
    "of an authority that the server lost": lambda _: SpiffeTestCA("example.org").issue(AGENT_ID),
    "R19 over by the server's clock": lambda ca: ca.issue(
        AGENT_ID, not_before=ca.now - timedelta(hours=2), not_after=ca.now - timedelta(hours=1)
    ),
    "R19 not begun by the server's clock": lambda ca: ca.issue(
        AGENT_ID, not_before=ca.now + timedelta(hours=2), not_after=ca.now + timedelta(hours=3)
    ),
}


@pytest.mark.parametrize("case", sorted(OWN_SVIDS))
async def test_a_server_that_hangs_up_on_the_own_certificate_is_told_from_one_that_is_away(case):
    """RFC 8446 4.4.4, R50: the handshake was over on this side; without a certificate the same server answers."""
    async with listening() as domain:
        async with dialing(domain, OWN_SVIDS[case](domain.ca)) as dialer:
            error = await refused(dialer)
            assert isinstance(error, Unauthenticated)
            assert "hung up without a word" in error.public
        async with dialing(domain) as dialer:
            assert await who(dialer) == "tls anonymous"
            assert dialer.last_error is None


async def test_a_server_that_hangs_up_late_is_overwhelmed(monkeypatch):
    """R37: no agent attests anew because a crowd is at the door."""
    monkeypatch.setattr(dialer_module, "_VERDICT_SECONDS", 0.0)
    async with listening() as domain, dialing(domain, SpiffeTestCA("example.org").issue(AGENT_ID)) as dialer:
        assert not isinstance(await refused(dialer), Unauthenticated)


async def test_a_server_that_hangs_up_on_everybody_says_nothing_about_a_certificate():
    """Nothing was shown, so nothing was turned away."""
    async with listening(connections=0) as domain, dialing(domain) as dialer:
        assert not isinstance(await refused(dialer), Unauthenticated)


async def test_the_dialers_listener_serves_its_own_process_only():
    """A5: a second process of the same user finds no tunnel to the server there."""
    async with listening() as domain, dialing(domain, domain.ca.issue(AGENT_ID)) as dialer:
        assert await who(dialer) == f"tls {AGENT_ID}"
        code = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "try:\n s.sendall(b'PRI * HTTP/2.0'); print(len(s.recv(100)))\nexcept OSError:\n print(0)"
        )
        argv = [sys.executable, "-c", code, dialer.local_path]
        said = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=30, check=True)
        assert said.stdout.strip() == "0"
        assert dialer.refused["foreign process"] == 1
        assert domain.door.open_connections == 1
        assert await who(dialer) == f"tls {AGENT_ID}"


async def test_keys_reach_tls_without_a_file(tmp_path, monkeypatch):
    """A5: through anonymous memory; nothing is left open, nothing is written."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    svid = SpiffeTestCA().issue()
    before = len(os.listdir("/proc/self/fd"))
    load_identity(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), identity_of(svid))
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []
