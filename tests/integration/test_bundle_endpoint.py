"""The bundle endpoint of a real server: what it serves in both profiles, and that its sequence never goes back."""

import contextlib
import json
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from identity_server.services.published_bundle import PublishedBundle
from identity_server.web.sequence_file import SequenceFile
from identity_server.web_endpoints import SEQUENCE_FILE
from spiffe_core.bundle_document import load_bundle, load_bundle_map
from spiffe_core.errors import ConfigError
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA
from tests.doubles.https_reader import connected, get, unchecked
from tests.doubles.live_server import TD, live_server

OTHER = SpiffeTestCA("fed.test")


@contextlib.asynccontextmanager
async def endpoint(tmp_path, **over):
    section = {"address": "127.0.0.1", "port": 0, **over}
    async with live_server(tmp_path, federation={"bundle_endpoint": section}) as live:
        live.published = live.server.published
        live.web = live.published.web.endpoints[0].address
        await settled(live)
        yield live


async def settled(live):
    """Tick until what memory holds is what is published."""
    bundle = live.published.bundle
    while bundle.watch.value is not live.state.bundles.own:
        await bundle.tick()


async def fetch(live, path="/", **over):
    answer = await get(live.web, path, **over)
    assert answer.status == 200, answer.body
    return load_bundle(answer.body, TD).bundle, answer


async def test_the_own_bundle_is_served_with_an_svid(tmp_path):
    """FED-14, FED-25, FED-26, FED-27, FED-40, TDB-05, TDB-09, X509-36: https_spiffe, the whole bundle, the hint."""
    async with endpoint(tmp_path, refresh_hint="90s") as live:
        async with connected(live.web, unchecked()) as reader:
            answer = await reader.ask()
            leaf = reader.tls.getpeercert(binary_form=True)
        served = load_bundle(answer.body, TD)
        assert served.warnings == ()
        own = live.state.bundles.own
        assert served.bundle.x509_roots == own.x509_roots
        assert served.bundle.refresh_hint == own.refresh_hint == 90
        assert served.bundle.sequence == own.sequence
        chain = live.server.own.identity.chain
        assert leaf == chain[0]
        svid = verify_x509_svid(chain, live.state.bundles.get, now=live.clock.now(), purpose="server")
        assert str(svid.spiffe_id) == "spiffe://example.org/spire/server"
        document = json.loads(answer.body.decode("utf-8", "strict"))
        assert isinstance(document["spiffe_sequence"], int)


async def test_a_change_is_served_with_a_higher_sequence(tmp_path):
    """TDB-06, TDB-07: a new root, then a new token key; each GET has the newest bundle (FED-25)."""
    from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb

    async with endpoint(tmp_path) as live:
        first, _ = await fetch(live)
        await live.local.PrepareX509Authority(pb.PrepareX509AuthorityRequest(), timeout=10)
        await settled(live)
        second, _ = await fetch(live)
        await live.local.PrepareJWTAuthority(pb.PrepareJWTAuthorityRequest(), timeout=10)
        await settled(live)
        third, _ = await fetch(live)
        assert [len(one.x509_roots) for one in (first, second, third)] == [1, 2, 2]
        assert [len(one.jwt_authorities) for one in (first, second, third)] == [1, 1, 2]
        assert first.sequence < second.sequence < third.sequence


async def test_nothing_is_served_before_its_number_is_written_down(tmp_path):
    """TDB-06, N-F-27: 503 until then, and never an empty document."""
    section = {"address": "127.0.0.1", "port": 0}
    async with live_server(tmp_path, federation={"bundle_endpoint": section}) as live:
        live.published, live.web = live.server.published, live.server.published.web.endpoints[0].address
        assert (await get(live.web)).status == 503
        await settled(live)
        assert (await get(live.web)).status == 200


async def test_the_sequence_stays_over_a_restart_and_goes_on_over_a_restored_database(tmp_path):
    """TDB-06, D19: the data directory remembers; without its memory the number begins at the unix time."""
    async with endpoint(tmp_path) as live:
        first = (await fetch(live))[0].sequence
        assert first >= int(live.clock.now().timestamp()) - 60
        data = live.server.settings.data_dir
    async with endpoint(tmp_path) as live:
        assert (await fetch(live))[0].sequence == first
    (data / SEQUENCE_FILE).write_text(json.dumps({"sequence": first + 5, "seen_at": int(live.clock.now().timestamp())}))
    async with endpoint(tmp_path) as live:  # what the database knows is older than what was published
        second = (await fetch(live))[0].sequence
        assert second > first + 5
    (data / SEQUENCE_FILE).unlink()
    async with endpoint(tmp_path) as live:  # the same on a new machine
        assert (await fetch(live))[0].sequence > second


async def test_another_hint_is_a_change_of_the_bundle(tmp_path):
    """TDB-07, D17."""
    async with endpoint(tmp_path, refresh_hint="1m") as live:
        first = (await fetch(live))[0]
    async with endpoint(tmp_path, refresh_hint="2m") as live:
        second = (await fetch(live))[0]
    assert (first.refresh_hint, second.refresh_hint) == (60, 120)
    assert second.sequence > first.sequence


async def test_two_servers_of_one_database_serve_one_sequence(tmp_path):
    """TDB-06 over replicas: whoever raises it raises it for all."""
    async with endpoint(tmp_path) as live:
        first = live.published.bundle.watch.value
        other = PublishedBundle(
            store=live.server.store,
            memory=SequenceFile(tmp_path / "other.json"),
            clock=live.clock,
            trust_domain=TD,
            refresh_hint=first.refresh_hint,
        )
        while other.watch.value is not live.state.bundles.own:
            await other.tick()
        await settled(live)
        assert other.current().sequence == live.published.bundle.current().sequence > first.sequence


@pytest.mark.parametrize(("shown", "names"), [("own", {"example.org"}), ("all", {"example.org", "fed.test"})])
async def test_the_bundle_map_shows_what_it_may(tmp_path, shown, names):
    """TDB-21, TDB-23, TDB-25: X.509 authorities alone, without hints, each domain once."""
    from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2

    async with endpoint(tmp_path, bundle_map=shown) as live:
        request = bundle_pb2.BatchSetFederatedBundleRequest(
            bundle=[{"trust_domain": "fed.test", "x509_authorities": [{"asn1": OTHER.der}], "refresh_hint": 60}]
        )
        await live.bundle.BatchSetFederatedBundle(request, timeout=10)
        answer = await get(live.web, "/bundle-map.json")
        loaded = load_bundle_map(answer.body)
        assert {str(name) for name in loaded} == names
        assert b"hint" not in answer.body
        assert all(not one.bundle.jwt_authorities for one in loaded.values())
        by_name = await get(live.web, "/bundles/fed.test")
        assert by_name.status == (200 if shown == "all" else 404)
        if shown == "all":
            assert load_bundle(by_name.body, TrustDomain("fed.test")).bundle.x509_roots == (OTHER.der,)


async def test_the_bundle_map_can_be_switched_off(tmp_path):
    async with endpoint(tmp_path, bundle_map="off") as live:
        assert (await get(live.web, "/bundle-map.json")).status == 404


async def test_a_bundle_is_found_by_its_name(tmp_path):
    """FED-25, N-F-22, N-F-23: the same bytes; other names, spellings and methods are refused in short JSON."""
    async with endpoint(tmp_path) as live:
        _, answer = await fetch(live)
        _, same = await fetch(live, "/bundles/example.org")
        assert (same.body, same.headers["etag"]) == (answer.body, answer.headers["etag"])
        unchanged = await get(live.web, "/bundles/example.org", headers=[("If-None-Match", same.headers["etag"])])
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert (await get(live.web, "/bundles/example.org", method="HEAD")).headers["etag"] == same.headers["etag"]
        for path, method, status in (
            ("/bundles/other.org", "GET", 404),
            ("/bundles/Example.org", "GET", 422),
            ("/bundles/" + "a" * 256, "GET", 422),
            ("/bundles/example.org", "POST", 405),
            ("/docs", "GET", 404),
        ):
            refused = await get(live.web, path, method=method)
            assert (refused.status, list(json.loads(refused.body))) == (status, ["error"])
        described = json.loads((await get(live.web, "/openapi.json")).body)
        assert list(described["paths"]) == ["/bundles/{trust_domain}"]


def web_files(folder: Path, name="localhost"):
    ca = SpiffeTestCA("web.test")
    svid = ca.issue("spiffe://web.test/x", uris=(), dns=(name,))
    (folder / "web.key").touch(mode=0o600)
    (folder / "web.key").write_bytes(svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "web.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, svid.chain)))
    return ca


def web_profile(folder: Path):
    files = {"cert_file_path": str(folder / "web.pem"), "key_file_path": str(folder / "web.key")}
    return {"https_web": {"serving_cert_file": files}}


def trusting(ca):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.der)
    return context


async def test_web_certificate_files_are_taken_over_when_they_change(tmp_path):
    """FED-14, FED-23: https_web; a half-written pair changes nothing."""
    first = web_files(tmp_path)
    async with endpoint(tmp_path / "server", profile=web_profile(tmp_path)) as live:
        files = live.published.web.endpoints[0].chores[0]

        async def served_by(ca):
            async with connected(live.web, trusting(ca), server_hostname="localhost") as reader:
                return (await reader.ask()).status

        assert await served_by(first) == 200
        assert not await files.reload()
        good = (tmp_path / "web.key").read_bytes()
        (tmp_path / "web.key").write_bytes(good[:-30])
        assert not await files.reload()
        assert "holds no private key" in live.server.monitor.report().troubles["server.endpoints"]
        assert await served_by(first) == 200
        second = web_files(tmp_path)
        assert await files.reload()
        assert await served_by(second) == 200
        assert "server.endpoints" not in live.server.monitor.report().troubles
        with pytest.raises(ssl.SSLError):
            await served_by(first)


async def test_web_files_that_do_not_fit_together_stop_the_start(tmp_path):
    web_files(tmp_path)
    key = (tmp_path / "web.key").read_bytes()
    web_files(tmp_path)
    (tmp_path / "web.key").write_bytes(key)
    with pytest.raises(ConfigError, match=r"key_file_path: .* is not the key of the first certificate"):
        async with endpoint(tmp_path / "server", profile=web_profile(tmp_path)):
            pass


async def test_an_expired_own_certificate_is_never_presented(tmp_path):
    """N-F-26: the handshake fails."""
    async with endpoint(tmp_path) as live:
        await fetch(live)
        live.clock.move(2 * 86_400)
        with pytest.raises((ssl.SSLError, OSError)):
            await get(live.web)


async def test_several_endpoints_run_at_once(tmp_path):
    web_files(tmp_path)
    common = {"address": "127.0.0.1", "port": 0}
    sections = [common, {**common, "profile": web_profile(tmp_path)}]
    async with live_server(tmp_path / "server", federation={"bundle_endpoint": sections}) as live:
        live.published = live.server.published
        await settled(live)
        bodies = {(await get(one.address)).body for one in live.published.web.endpoints}
        assert len(live.published.web.endpoints) == 2
        assert len(bodies) == 1
