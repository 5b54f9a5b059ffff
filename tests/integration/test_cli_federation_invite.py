"""`federation invite` and `federation accept` against real servers: what is shown, what is asked, what is said no to."""

from __future__ import annotations

import asyncio
import io
import json
import sys

import pytest

from identity_server.cli import main
from spiffe_core.spiffe_id import TrustDomain
from tests.doubles.canned_daemon import leave_code
from tests.doubles.federated import domain

A, B = TrustDomain("a.test"), TrustDomain("b.test")


class Terminal(io.TextIOWrapper):
    """Standard input where a person sits."""

    def isatty(self):
        return True


@pytest.fixture
async def pair():
    async with domain("a.test", polls=False) as a, domain("b.test", polls=False) as b:
        yield a, b


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command against one of the servers; its exit code, standard output and standard error."""

    async def command(live, *words, typed=None, piped=b""):
        given = io.TextIOWrapper(io.BytesIO(piped)) if typed is None else Terminal(io.BytesIO(typed.encode()))
        monkeypatch.setattr(sys, "stdin", given)
        path = str(live.server.settings.socket_path)
        code = await asyncio.to_thread(leave_code, main, "federation", *words, "--socket-path", path)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


async def test_a_person_sees_the_keys_says_yes_and_gets_the_line_for_the_way_back(pair, run):
    """Issue 6 item 4: invite, look, agree, answer."""
    a, b = pair
    code, line, err = await run(a, "invite", "--url", a.url, "--ttl", "600")
    assert (code, line.startswith("muniment-federation-1:"), line.count("\n")) == (0, True, 1)
    assert "can be accepted until" in err
    code, out, err = await run(b, "accept", line.strip(), "--url", b.url, typed="y\n")
    assert (code, err) == (0, "For the way back, the other side accepts this line:\n"), out
    own = a.state.bundles.own
    for text in ("a.test", a.url, "https_spiffe", own.x509_authorities[0].key_id, own.jwt_authorities[0].key_id):
        assert text in out
    assert "Federated with a.test." in out
    assert b.state.bundles.get(A).x509_roots == own.x509_roots
    back = out.rstrip().rpartition("\n")[2]
    code, out, _ = await run(a, "accept", "--yes", "--url", a.url, "--output", "json", piped=back.encode())
    assert (code, json.loads(out)["invitation"].startswith("muniment-federation-1:")) == (0, True)
    assert a.state.bundles.get(B).x509_roots == b.state.bundles.own.x509_roots


async def test_a_person_who_says_no_changes_nothing(pair, run):
    a, b = pair
    _, line, _ = await run(a, "invite", "--url", a.url)
    code, out, err = await run(b, "accept", line.strip(), typed="n\n")
    assert (code, "nothing was changed" in err) == (1, True)
    assert "fingerprint" in out
    assert not b.state.relationships
    assert b.state.bundles.get(A) is None


async def test_nobody_is_asked_where_nobody_sits(pair, run):
    a, b = pair
    _, line, _ = await run(a, "invite", "--url", a.url)
    for words, text in ((("accept",), "--yes"), (("accept", line.strip(), "--output", "json"), "--yes")):
        code, out, err = await run(b, *words, piped=line.encode())
        assert (code, text in out + err) == (1, True), err
    assert not b.state.relationships


async def test_what_stands_in_the_way_is_named(pair, run):
    """Errors name the rule and what to do next."""
    a, b = pair
    for live, words, text in (
        (a, ("invite",), "federation.public_url"),
        (a, ("invite", "--url", "http://a.test/"), "https scheme"),
        (a, ("invite", "--url", a.url, "--profile", "ftp"), "https_web or https_spiffe"),
        (a, ("invite", "--url", a.url, "--ttl", "9999999"), "7 days"),
        (b, ("accept", "--yes", "hello"), "does not begin with"),
        (b, ("accept", "--yes", "muniment-federation-1:a.b.c"), "is damaged"),
    ):
        code, _, err = await run(live, *words)
        assert (code, text in err) == (1, True), err
    _, line, _ = await run(a, "invite", "--url", a.url)
    code, _, err = await run(a, "accept", "--yes", line.strip())
    assert (code, "is from this trust domain itself" in err) == (1, True)
    a.clock.move(-7200)
    _, old, _ = await run(a, "invite", "--url", a.url)
    code, _, err = await run(b, "accept", "--yes", old.strip())
    assert (code, "ask for a new one" in err) == (1, True)


async def test_without_an_endpoint_of_our_own_there_is_no_way_back(pair, run):
    """It federates in one direction, and says what is missing for the other."""
    a, b = pair
    _, line, _ = await run(a, "invite", "--url", a.url)
    code, out, err = await run(b, "accept", "--yes", line.strip())
    assert (code, "Federated with a.test." in out, "no line for the way back" in err) == (0, True, True)


async def test_another_relationship_is_not_replaced(pair, run):
    """The operator decides which one is meant."""
    a, b = pair
    web = ("--bundle-endpoint-url", "https://a.test/", "--bundle-endpoint-profile", "https_web")
    assert (await run(b, "create", "--trust-domain", "a.test", *web))[0] == 0
    _, line, _ = await run(a, "invite", "--url", a.url)
    code, _, err = await run(b, "accept", "--yes", line.strip())
    assert (code, "there is a relationship with a.test already" in err) == (1, True)
    assert b.state.bundles.get(A) is None


async def test_who_serves_no_bundle_is_told_that_nobody_can_accept(pair, run):
    """Standard output stays one line; the warning names the table to set, and the address that has to answer."""
    a, _ = pair
    url = "https://c.test/bundle"
    async with domain("c.test", polls=False, federation={"bundle_endpoint": []}) as c:
        code, line, err = await run(c, "invite", "--url", url)
        assert (code, line.startswith("muniment-federation-1:"), line.count("\n")) == (0, True, 1)
        warning = next(text for text in err.splitlines() if text.startswith("Warning: "))
        assert "federation.bundle_endpoint" in warning
        assert url in warning
        code, out, err = await run(c, "invite", "--url", url, "--output", "json")
        assert (code, json.loads(out)["warnings"]) == (0, [warning.removeprefix("Warning: ")])
        _, line, err = await run(a, "invite", "--url", a.url)
        assert "Warning" not in err
        code, out, err = await run(c, "accept", "--yes", line.strip(), "--url", url)
        assert (code, out.splitlines()[-1].startswith("muniment-federation-1:"), warning in err) == (0, True, True)
