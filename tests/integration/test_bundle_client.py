"""The bundle client against endpoints that lie, stall and lead elsewhere: both profiles over real TLS."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from identity_server.bundle_client.fetcher import ClientLimits, HttpsBundleFetcher
from identity_server.domain.federation import EndpointProfile, FederationRelationship
from identity_server.domain.reachability import AddressPolicy, parse_networks
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import dump_bundle
from spiffe_core.clock import SystemClock
from spiffe_core.errors import Unavailable
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from tests.authority import SpiffeTestCA, trusting
from tests.doubles.bundle_endpoint import Endpoint, WebIdentity, answer, redirect

FED = TrustDomain("fed.test")
SERVER = SpiffeId(FED, "/spire/server")
CA = SpiffeTestCA("fed.test")
OTHER = SpiffeTestCA("other.test")
WEB = SpiffeTestCA("web.test", uris=())
BUNDLE = CA.bundle(sequence=7)
DOCUMENT = dump_bundle(BUNDLE)
SVID = CA.issue(str(SERVER))
LOOPBACK = AddressPolicy(parse_networks(["127.0.0.0/8"]))


def limits(**over):
    return ClientLimits(**{"policy": LOOPBACK, "seconds": 10.0, **over})


def client(resolve=None, **over):
    return HttpsBundleFetcher(limits(**over), SystemClock(), **({"resolve": resolve} if resolve else {}))


def spiffe(url, who=SERVER, name=FED):
    return FederationRelationship(name, url, EndpointProfile.HTTPS_SPIFFE, who)


def web(url, name=FED):
    return FederationRelationship(name, url, EndpointProfile.HTTPS_WEB)


@pytest.fixture(scope="module")
def ca_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "web.pem"
    path.write_bytes(WEB.certificate.public_bytes(Encoding.PEM))
    return path


async def refusal(fetch):
    with pytest.raises(Unavailable) as caught:
        await fetch
    return caught.value.public


def serving(document=DOCUMENT, identity=SVID):
    return Endpoint(identity, lambda _: answer(document))


async def test_an_svid_of_the_right_id_is_believed_whatever_its_host_name():
    """FED-13, FED-42, N-F-09: https_spiffe; TDB-08: a sequence above 2^53 arrives as it is."""
    document = dump_bundle(replace(BUNDLE, sequence=2**53 + 1))
    with serving(document) as endpoint:
        loaded = await client().fetch(spiffe(endpoint.url), trusting(BUNDLE))
    assert loaded.bundle == replace(BUNDLE, sequence=2**53 + 1)
    assert loaded.warnings == ()


async def test_what_is_sent_tells_nothing_about_us():
    """FED-24, S60: a plain GET of the path and the query; no credentials, no cookies, no fragment."""
    with serving() as endpoint:
        await client().fetch(spiffe(endpoint.url + "?a=b#c"), trusting(BUNDLE))
    (request,) = endpoint.requests
    lines = request.strip().split("\r\n")
    assert lines[0] == "GET /bundle?a=b HTTP/1.1"
    assert {line.partition(":")[0].lower() for line in lines[1:]} == {"host", "accept", "accept-encoding", "connection"}


@pytest.mark.parametrize(
    ("identity", "who", "text"),
    [
        pytest.param(CA.issue("spiffe://fed.test/other"), SERVER, "did not prove to be", id="N-F-06 another ID"),
        pytest.param(OTHER.issue("spiffe://other.test/x"), SERVER, "TLS failed", id="N-F-07 another domain's chain"),
        pytest.param(OTHER.issue(str(SERVER)), SERVER, "TLS failed", id="N-F-07 right ID, wrong root"),
        pytest.param(WebIdentity(CA), SERVER, "did not prove to be", id="N-F-08 a web certificate"),
        pytest.param(SVID, SpiffeId(FED, "/spire/server/x"), "did not prove to be", id="S62 not exactly the ID"),
    ],
)
async def test_who_is_not_the_endpoint_is_refused(identity, who, text):
    """S62, FED-42, FED-47: also no https_web is tried instead."""
    with serving(identity=identity) as endpoint:
        assert text in await refusal(client().fetch(spiffe(endpoint.url, who), trusting(BUNDLE)))
    assert endpoint.requests == [], "nothing was sent"


async def test_only_the_endpoints_own_trust_domain_counts():
    """FED-12, FED-32, FED-39, FED-44, N-X-18: a root of another stored bundle does not vouch for this one."""
    elsewhere = trusting(BUNDLE, OTHER.bundle())
    with serving(identity=OTHER.issue(str(SERVER))) as endpoint:
        assert "TLS failed" in await refusal(client().fetch(spiffe(endpoint.url), elsewhere))
    with serving(identity=OTHER.issue("spiffe://other.test/host")) as endpoint:
        relationship = spiffe(endpoint.url, SpiffeId(OTHER.trust_domain, "/host"))
        assert (await client().fetch(relationship, elsewhere)).bundle == BUNDLE
        assert "no bundle of other.test" in await refusal(client().fetch(relationship, trusting(BUNDLE)))
        empty = trusting(TrustBundle(OTHER.trust_domain))
        assert "has no X.509 authority" in await refusal(client().fetch(relationship, empty))


async def test_a_removed_root_verifies_no_more():
    """N-F-10, FED-43: the newest bundle decides."""
    new = SpiffeTestCA("fed.test")
    with serving() as endpoint:
        assert "TLS failed" in await refusal(client().fetch(spiffe(endpoint.url), trusting(new.bundle())))


async def test_a_web_certificate_is_held_to_authority_and_name(ca_file):
    """FED-21, FED-31, N-F-05: https_web by an authority and the host's name; unknown, expired and wrong ones are refused."""
    with serving(identity=WebIdentity(WEB)) as endpoint:
        assert (await client(ca_file=ca_file).fetch(web(endpoint.url), trusting())).bundle == BUNDLE
        assert "not believed" in await refusal(client().fetch(web(endpoint.url), trusting(BUNDLE)))
        endpoint.identity = WebIdentity(WEB, "fed.example")
        assert "not believed" in await refusal(client(ca_file=ca_file).fetch(web(endpoint.url), trusting(BUNDLE)))
        endpoint.identity = WebIdentity(WEB, not_after=WEB.now - WEB.now.resolution)
        assert "expired" in await refusal(client(ca_file=ca_file).fetch(web(endpoint.url), trusting(BUNDLE)))
        endpoint.identity = SVID
        assert "not believed" in await refusal(client(ca_file=ca_file).fetch(web(endpoint.url), trusting(BUNDLE)))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_and_forgotten(status):
    """FED-33, FED-35, N-F-13: to another path; the next fetch begins at the configured URL."""

    def script(path):
        return answer(DOCUMENT) if path == "/there" else redirect("/there", status)

    with Endpoint(SVID, script) as endpoint:
        fetcher = client()
        for _ in range(2):
            assert (await fetcher.fetch(spiffe(endpoint.url), trusting(BUNDLE))).bundle == BUNDLE
    assert [request.split(" ")[1] for request in endpoint.requests] == ["/bundle", "/there"] * 2


async def test_a_redirect_target_proves_the_same_id(ca_file):
    """FED-34, FED-41, N-F-12: the ID that was configured, and in https_web the name of the new host."""
    with serving(identity=CA.issue("spiffe://fed.test/other")) as target:
        with Endpoint(SVID, lambda _: redirect(target.url)) as endpoint:
            assert "did not prove to be" in await refusal(client().fetch(spiffe(endpoint.url), trusting(BUNDLE)))
        assert target.requests == []
        target.identity = WebIdentity(WEB, "fed.example")
        with Endpoint(WebIdentity(WEB), lambda _: redirect(target.url)) as endpoint:
            text = await refusal(client(ca_file=ca_file).fetch(web(endpoint.url), trusting(BUNDLE)))
            assert "not believed" in text


@pytest.mark.parametrize(
    ("to", "text"),
    [
        ("http://127.0.0.1/", "https scheme"),
        ("https://u:p@127.0.0.1/", "user info"),
        ("file:///etc/passwd", "https scheme"),
        ("ftp://127.0.0.1/", "https scheme"),
        ("", "without saying where"),
        ("//[", "no URL"),
        ("https://127.0.0.1:99999/", "host or port cannot be read"),
        ("https://10.0.0.1/", "10.0.0.1 is a private address"),
        ("https://169.254.169.254/latest", "metadata service"),
        ("https://[::1]/", "::1 is a loopback address"),
        ("https://[::ffff:10.0.0.1]/", "is a private address"),
    ],
)
async def test_a_redirect_leads_nowhere_else(to, text):
    """S60, FED-33, N-F-11, N-F-14: each hop is checked like the first URL."""
    with Endpoint(SVID, lambda _: redirect(to)) as endpoint:
        assert text in await refusal(client().fetch(spiffe(endpoint.url), trusting(BUNDLE)))


async def test_redirects_end():
    """N-F-14, FED-33: a circle, a chain without end, and the switch that follows none."""
    with Endpoint(SVID, lambda path: redirect("/b" if path == "/a" else "/a")) as endpoint:
        assert "in a circle" in await refusal(client().fetch(spiffe(endpoint.url), trusting(BUNDLE)))
    steps = itertools.count()
    with Endpoint(SVID, lambda _: redirect(f"/{next(steps)}")) as endpoint:
        assert "more than 10 times" in await refusal(client().fetch(spiffe(endpoint.url), trusting(BUNDLE)))
        assert len(endpoint.requests) == 11
        assert "more than 0 times" in await refusal(client(redirects=0).fetch(spiffe(endpoint.url), trusting(BUNDLE)))


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 401, 404, 500])
async def test_another_status_is_no_bundle(status):
    """N-F-15: whatever the body says; and 200 without a body."""
    with Endpoint(SVID, lambda _: answer(b"" if status == 204 else DOCUMENT, status)) as endpoint:
        assert f"status {status}" in await refusal(client().fetch(spiffe(endpoint.url), trusting(BUNDLE)))


async def test_a_bundle_that_is_not_called_json_is_taken_with_a_warning():
    """N-F-16, FED-27."""
    with Endpoint(SVID, lambda _: answer(DOCUMENT, content_type="text/html")) as endpoint:
        loaded = await client().fetch(spiffe(endpoint.url), trusting(BUNDLE))
    assert loaded.bundle == BUNDLE
    assert loaded.warnings == ("the endpoint does not call its answer JSON",)


SECRET = "hunter2-from-the-inside"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f"<html>{SECRET}</html>".encode(), id="N-B-01 HTML"),
        pytest.param(DOCUMENT[:-3], id="N-B-01 truncated"),
        pytest.param(b"", id="N-F-15 empty"),
        pytest.param(json.dumps(["keys", SECRET]).encode(), id="N-B-02 an array"),
        pytest.param(DOCUMENT + b"x", id="N-B-03 trailing bytes"),
        pytest.param("\ufeff".encode() + DOCUMENT, id="N-B-04 a byte order mark"),
        pytest.param(DOCUMENT.decode().encode("utf-16"), id="N-B-04 UTF-16"),
        pytest.param(json.dumps({"spiffe_sequence": 1, "x": SECRET}).encode(), id="N-B-05 no keys"),
        pytest.param(b'{"keys":[],"keys":[]}', id="N-B-29 twice"),
        pytest.param(json.dumps({"keys": [{}] * 10_000}).encode(), id="S61 10,000 keys"),
        pytest.param(b"[" * 100_000, id="N-B-31 deep"),
        pytest.param(b"\x1f\x8b" + b"\0" * 64, id="N-F-17 gzip"),
    ],
)
async def test_what_is_no_bundle_is_refused_and_never_quoted(body):
    """S60, S61: the message says what rule it breaks and nothing of what came."""
    with Endpoint(SVID, lambda _: answer(body)) as endpoint:
        text = await refusal(client().fetch(spiffe(endpoint.url), trusting(BUNDLE)))
    assert "is no bundle" in text
    assert SECRET not in text


async def test_a_gigabyte_is_not_read():
    """S61, N-B-31: said beforehand or not, the body ends at the bound."""
    sent = itertools.count()

    def endless(head):
        yield head
        for _ in range(1024):
            next(sent)
            yield b" " * 1024 * 1024

    for head in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ):
        with Endpoint(SVID, lambda _, head=head: endless(head)) as endpoint:
            assert "has more than 4194304 bytes" in await refusal(
                client().fetch(spiffe(endpoint.url), trusting(BUNDLE))
            )
    assert next(sent) < 64, "the connection was closed, not drained"


@pytest.mark.parametrize("part", ["handshake", "head", "body", "headers"])
async def test_dripping_ends_with_the_time(part):
    """S61, N-F-17: a byte now and then buys no more time, wherever it comes."""

    def drip(endpoint, data):
        for number in itertools.count():
            yield data[number : number + 1] or b" "
            if endpoint.wait():
                return

    datas = {
        "head": b"HTTP/1.1 200 OK\r\nx: ",
        "body": b"",
        "headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 90 + b"x: ",
    }

    def script(_):
        if part == "body":
            return itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], drip(endpoint, b"{"))
        return drip(endpoint, datas[part])

    with Endpoint(SVID, script) as endpoint:
        if part == "handshake":
            endpoint.identity = Stalling(endpoint)
        began = time.monotonic()
        text = await refusal(client(seconds=0.6).fetch(spiffe(endpoint.url), trusting(BUNDLE)))
        assert "did not arrive within 0.6 s" in text or "did not answer in time" in text
        assert time.monotonic() - began < 8


class Stalling:
    """An identity that is never ready: the handshake hangs."""

    def __init__(self, endpoint):
        self._endpoint = endpoint

    @property
    def key(self):
        self._endpoint.ending.wait(20)
        return SVID.key

    chain = SVID.chain


async def test_one_that_stalls_holds_up_no_other():
    """S61, R49: eight peers that never answer, and one that does."""
    with Endpoint(SVID, lambda _: (endpoint.ending.wait(20) and b"",)) as endpoint, serving() as good:
        fetcher = client(seconds=5)
        async with asyncio.TaskGroup() as tasks:
            slow = [tasks.create_task(refusal(fetcher.fetch(spiffe(endpoint.url), trusting(BUNDLE)))) for _ in range(8)]
            assert (await fetcher.fetch(spiffe(good.url), trusting(BUNDLE))).bundle == BUNDLE
            assert not any(task.done() for task in slow)
            endpoint.ending.set()


async def test_a_name_is_looked_up_once_and_its_checked_address_is_connected_to():
    """S60: DNS rebinding; what the name means a moment later does not matter."""
    asked = []

    def rebinding(host, port):
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with serving() as endpoint:
        url = f"https://fed.example:{endpoint.port}/bundle"
        assert (await client(rebinding).fetch(spiffe(url), trusting(BUNDLE))).bundle == BUNDLE
        assert asked == ["fed.example"]
        assert "Host: fed.example:" in endpoint.requests[0]


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], []]
)
async def test_a_name_with_one_address_that_is_refused_is_not_connected_to(addresses):
    """S60: every address is checked before the first connection."""
    with serving() as endpoint:
        fetcher = client(lambda *_: addresses, policy=AddressPolicy())
        text = await refusal(fetcher.fetch(spiffe(f"https://fed.example:{endpoint.port}/"), trusting(BUNDLE)))
        assert "address" in text
    assert endpoint.requests == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost", "[::1]", "[::]", "0"])
async def test_loopback_in_other_spellings_is_loopback(host):
    """S60: the system's resolver decides what a host is, and what it answers is checked."""
    text = await refusal(client(policy=AddressPolicy()).fetch(spiffe(f"https://{host}:8443/"), trusting(BUNDLE)))
    assert "is a loopback address" in text or "is unspecified" in text or "cannot be resolved" in text


async def test_a_fetch_that_is_given_up_leaves_no_thread_behind():
    """N-F-19: cancelling closes the connection, wherever its thread waits."""
    with Endpoint(SVID, lambda _: (endpoint.ending.wait(20) and b"",)) as endpoint:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(client().fetch(spiffe(endpoint.url), trusting(BUNDLE)))
            while not endpoint.requests:
                await asyncio.sleep(0.01)
            task.cancel()
        assert task.cancelled()
