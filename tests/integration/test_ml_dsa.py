"""ML-DSA authorities, an experiment: who verifies them, and the refusal to activate one that our own TLS could not.

Python's ssl verifies them with OpenSSL 3.5 and later, and not before. Which of the two this process has is asked by a
handshake; both outcomes are tested on each, the other one with a self-test that says so.
"""

from __future__ import annotations

import os
import ssl
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest

from identity_server.bootstrap import running
from identity_server.domain.issuance import parent_of, prepare, sign
from identity_server.domain.profiles import Profile, plan_ca, plan_leaf
from identity_server.keys import DiskKeys, MemoryKeys
from identity_server.services import tls_self_test as self_tests
from identity_server.services.tls_self_test import tls_self_test
from identity_server.settings import from_mapping
from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import KeyKind, generate, generate_authority_key, ml_dsa_kind, spki_der, to_pkcs8
from spiffe_core.errors import ConfigError, IdentityError, PreconditionFailed, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.rehearsal import rehearse
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.tls import ServerTls, TlsIdentity
from tests.doubles.door_service import serve

TD = TrustDomain("example.org")
SERVER = SpiffeId(TD, "/spire/server")
KINDS = [kind for kind in KeyKind if kind.post_quantum]
CLASSIC = [kind for kind in KeyKind if not kind.post_quantum]
CLOCK = SystemClock()


def chain_under(kind, *, dns_names=()):
    """(identity, bundle): a leaf below a fresh authority of a kind; the server's, or a workload's with DNS names."""
    now = int(CLOCK.now().timestamp())
    key, leaf_key = generate_authority_key(kind), generate(KeyKind.EC_P256)
    root = sign(prepare(plan_ca(TD, key.public_key(), lifetime=600, now=now, serial=1)), key)
    profile, name = (Profile.WORKLOAD, SpiffeId(TD, "/w")) if dns_names else (Profile.SERVER, SERVER)
    public = leaf_key.public_key()
    plan = plan_leaf(profile, parent_of(root), name, public, ttl=300, now=now, serial=2, dns_names=dns_names)
    return TlsIdentity((sign(prepare(plan), key),), to_pkcs8(leaf_key)), TrustBundle(TD).with_x509_authority(root)


def verdict(call):
    try:
        call()
    except (PreconditionFailed, VerificationFailed):
        return False
    return True


def ssl_verifies() -> bool:
    """What this process's ssl does with ML-DSA."""
    return ssl.OPENSSL_VERSION_INFO >= (3, 5)


async def door_verdict(identity, bundle):
    """Whether the real front door and the real dialer believe each other over loopback."""
    async with AsyncExitStack() as stack:
        door = FrontDoor()
        stack.push_async_callback(door.close)
        _, server = await serve(door)
        stack.push_async_callback(server.stop, None)
        host, port = door.listen_tcp("127.0.0.1", 0, ServerTls(lambda: identity, lambda: BundleSet(bundle), CLOCK.now))
        trust = DialTrust(SERVER, {TD: bundle}.get)
        dialer = Dialer(host, port, trust=lambda: trust, identity=lambda: identity, now=CLOCK.now)
        await dialer.start()
        stack.push_async_callback(dialer.close)
        channel = dialer.channel()
        state = channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY and dialer.last_error is None:
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)
        return dialer.last_error is None


@pytest.mark.parametrize("kind", CLASSIC, ids=lambda kind: kind.value)
def test_the_self_test_passes_for_every_ordinary_kind(kind) -> None:
    tls_self_test(TD, CLOCK, os.urandom)(kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_the_self_test_says_what_this_processs_tls_does(kind) -> None:
    """Not a version number decides but a handshake; the refusal names kind, library, reason and remedy."""
    test = tls_self_test(TD, CLOCK, os.urandom)
    assert verdict(lambda: test(kind)) is ssl_verifies()
    if not ssl_verifies():
        with pytest.raises(PreconditionFailed) as refused:
            test(kind)
        for part in ("ca.key_type", kind.value, ssl.OPENSSL_VERSION, "CA_MD_TOO_WEAK", "OpenSSL 3.5 or later"):
            assert part in refused.value.public


@pytest.mark.parametrize("kind", [KeyKind.EC_P256, KeyKind.ML_DSA_65], ids=lambda kind: kind.value)
async def test_the_rehearsal_and_the_real_front_door_agree(kind) -> None:
    identity, bundle = chain_under(kind)
    said = verdict(lambda: rehearse(identity, bundle, now=CLOCK.now()))
    assert await door_verdict(identity, bundle) is said


def test_a_rehearsal_refuses_a_bundle_that_does_not_hold_the_signer() -> None:
    identity, _ = chain_under(KeyKind.EC_P256)
    _, other = chain_under(KeyKind.EC_P256)
    with pytest.raises(VerificationFailed):
        rehearse(identity, other, now=CLOCK.now())


def test_an_ml_dsa_root_beside_ours_does_not_disturb_ordinary_handshakes() -> None:
    """A bundle may hold one from another server of the trust domain whose TLS can."""
    identity, bundle = chain_under(KeyKind.EC_P256)
    _, strange = chain_under(KeyKind.ML_DSA_87)
    rehearse(identity, bundle.with_x509_authority(strange.x509_roots[0]), now=CLOCK.now())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_memory_and_disk_keep_ml_dsa_keys(kind, tmp_path) -> None:
    path = tmp_path / "data" / "keys.json"
    for keys in (MemoryKeys(), DiskKeys(path)):
        public = keys.generate("x509-CA-A", kind)
        signer = keys.signer("x509-CA-A")
        assert ml_dsa_kind(public) is kind
        public.verify(signer.sign(b"data"), b"data")
    again = DiskKeys(path).signer("x509-CA-A")
    assert spki_der(again.public_key()) == spki_der(public)


def document(tmp_path, **over):
    return {
        "trust_domain": "example.org",
        "data_dir": str(tmp_path / "data"),
        "socket_path": str(tmp_path / "run" / "admin.sock"),
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "audit": {"file": str(tmp_path / "audit.jsonl")},
        "ca": {"key_type": "ml-dsa-65"},
        "experimental": {"ml_dsa": True},
        "jwt": {"key_type": "ec-p256"},
        **over,
    }


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"experimental": {}}, "needs experimental.ml_dsa = true"),
        ({"jwt": {}}, "jwt.key_type must be set"),
        ({"wit": {"enabled": True}}, "wit.key_type must be set"),
        ({"jwt": {"key_type": "ml-dsa-44"}}, "jwt.key_type"),
        ({"wit": {"key_type": "ml-dsa-44"}}, "wit.key_type"),
        ({"ca": {"key_type": "ml-dsa-66"}}, "ca.key_type"),
        (
            {
                "ca": {
                    "key_type": "ml-dsa-44",
                    "key_manager": "pkcs11",
                    "pkcs11": {"module": "/m", "slot": 0, "pin_file": "/p"},
                }
            },
            "cannot be made in a PKCS#11 token",
        ),
        ({"upstream": {"kind": "disk", "disk": {"cert_file": "/c", "key_file": "/k"}}}, "signs for itself"),
    ],
)
def test_settings_refuse_what_does_not_go_with_ml_dsa(tmp_path, over, words) -> None:
    with pytest.raises(ConfigError, match=words):
        from_mapping(document(tmp_path, **over))


async def test_a_server_starts_with_ml_dsa_exactly_if_its_tls_can_verify_it(tmp_path) -> None:
    """Refused before a key is made or anything published; otherwise it starts and serves its own leaf under ML-DSA."""
    settings = from_mapping(document(tmp_path))
    if ssl_verifies():
        async with running(settings) as server:
            assert ml_dsa_kind(parent_of(server.authorities.active.certificate).public_key) is KeyKind.ML_DSA_65
            assert server.serving
        return
    with pytest.raises(PreconditionFailed, match="ml-dsa-65 is not activated"):
        async with running(settings):
            pass
    assert not (tmp_path / "data" / "keys.json").exists()


class SaysYes:
    """A self-test for a process whose TLS could; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[KeyKind] = []
        self.refusal: IdentityError | None = None

    def __call__(self, kind: KeyKind) -> None:
        self.asked.append(kind)
        if self.refusal is not None:
            raise self.refusal


@pytest.fixture
def yes(monkeypatch):
    test = SaysYes()
    monkeypatch.setattr("identity_server.services.authorities.tls_self_test", lambda *_: test)
    assert self_tests.tls_self_test is not None
    return test


async def test_with_a_tls_that_can_an_ml_dsa_authority_is_made_activated_and_signs(tmp_path, yes) -> None:
    """Asked before the key, before activation, and at the next start; a no at any of them stops exactly that."""
    settings = from_mapping(document(tmp_path))
    async with running(settings) as server:
        active = server.authorities.active
        assert ml_dsa_kind(parent_of(active.certificate).public_key) is KeyKind.ML_DSA_65
        assert yes.asked == [KeyKind.ML_DSA_65] * 2
        issued = server.authorities.issuer.issue("workload", SpiffeId(TD, "/w"), generate(KeyKind.EC_P256).public_key())
        assert len(issued.chain) == 1
        yes.refusal = PreconditionFailed("our TLS can no more")
        with pytest.raises(PreconditionFailed, match="no more"):
            await server.authorities.prepare("x509", "test")
        yes.refusal = None
        prepared = await server.authorities.prepare("x509", "test")
        server.clock.monotonic = lambda: 10**6  # it stood in the bundle for long enough
        yes.refusal = PreconditionFailed("our TLS can no more")
        with pytest.raises(PreconditionFailed, match="no more"):
            await server.authorities.activate("x509", prepared.authority_id, "test")
        assert server.authorities.active == active
    with pytest.raises(PreconditionFailed, match="no more"):
        async with running(settings):
            pass


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
async def test_grpcio_verifies_ml_dsa_authorities_over_p256_leaves(kind) -> None:
    """Mutual TLS by BoringSSL; an authority of the same name with another key is refused."""
    identity, bundle = chain_under(kind, dns_names=("localhost",))
    _, stranger = chain_under(kind)

    def pem(label, der):
        return ssl.DER_cert_to_PEM_cert(der).replace("CERTIFICATE", label).encode()

    key, chain = pem("PRIVATE KEY", identity.key.reveal()), b"".join(pem("CERTIFICATE", der) for der in identity.chain)

    async def answer(request, context):
        return b"yes"

    handler = grpc.method_handlers_generic_handler("t", {"Ask": grpc.unary_unary_rpc_method_handler(answer)})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([handler])
    root = pem("CERTIFICATE", bundle.x509_roots[0])
    port = server.add_secure_port(
        "localhost:0", grpc.ssl_server_credentials([(key, chain)], root, require_client_auth=True)
    )
    await server.start()
    try:
        for trusted, expected in ((bundle, b"yes"), (stranger, None)):
            credentials = grpc.ssl_channel_credentials(pem("CERTIFICATE", trusted.x509_roots[0]), key, chain)
            async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                call = channel.unary_unary("/t/Ask")(b"", timeout=20)
                said = await _outcome(call)
            if expected is None:
                assert isinstance(said, grpc.aio.AioRpcError)
                assert "CERTIFICATE_VERIFY_FAILED" in said.details()
            else:
                assert said == expected
    finally:
        await server.stop(None)


async def _outcome(call):
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error
