"""The vault upstream against Vault's documented API over real HTTPS: logins, tokens, signatures and every fault."""

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from identity_server.settings_upstream_network import UpstreamVaultSection
from identity_server.upstream.vault import VaultUpstream
from spiffe_core.bundle import JwtAuthority, WitAuthority, X509Authority
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import ConfigError, Unavailable, Unimplemented
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA
from tests.builders import TD
from tests.doubles.live_server import live_server
from tests.doubles.simulated_vault import JWT, ROLE, ROLE_ID, SECRET_ID, SimulatedVault, pem

KEY = generate(KeyKind.EC_P256)
CSR = build_csr(KEY, spiffe_id=TD.id, subject=(("C", "US"), ("O", "SPIFFE")))


def secret(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def section(vault, **over):
    document = {
        "address": f"https://localhost:{vault.port}",
        "ca_file": str(vault.folder / "vault-ca.pem"),
        "approle_auth": {"role_id": ROLE_ID, "secret_id_file": secret(vault.folder / "secret-id", SECRET_ID + "\n")},
        **over,
    }
    return UpstreamVaultSection.model_validate({name: value for name, value in document.items() if value is not None})


def token_auth(vault, token):
    return {"approle_auth": None, "token_auth": {"token_file": secret(vault.folder / "token", token)}}


@asynccontextmanager
async def upstream(vault, *, seconds=10.0, **over):
    made = VaultUpstream(section(vault, **over), clock=SystemClock(), jitter=lambda: 0.0, call_seconds=seconds)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def vault(tmp_path):
    with SimulatedVault(tmp_path).serving() as serving:
        yield serving


async def until(fact, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not fact():
            await asyncio.sleep(0.01)


async def refusal(made, ttl=3600):
    with pytest.raises(Unavailable) as caught:
        await made.mint_x509_ca(CSR, ttl)
    text = caught.value.public
    assert text.startswith("upstream vault: ")
    assert SECRET_ID not in text
    assert "hvs." not in text
    return text


async def test_a_ca_is_signed_for_our_key_name_and_id(vault):
    """Request and answer of sign-intermediate; the chain has no root, and the root is shown."""
    async with upstream(vault) as made:
        assert made.view.value.x509_authorities == ()
        minted = await made.mint_x509_ca(CSR, 3600)
        ours = read_certificate(minted.chain[0])
        assert spki_der(ours.certificate.public_key()) == spki_der(KEY.public_key())
        assert minted.roots == (vault.root.der,)
        assert len(minted.chain) == 1
        assert [one.der for one in made.view.value.x509_authorities] == [vault.root.der]
    _, path, headers, body = vault.requests("sign-intermediate")[0]
    assert path == "/v1/pki/root/sign-intermediate"
    assert headers["X-Vault-Token"].startswith("hvs.")
    assert "X-Vault-Namespace" not in headers
    assert {name: body[name] for name in body if name != "csr"} == {
        "format": "pem",
        "use_csr_values": True,
        "exclude_cn_from_sans": True,
        "ttl": "3600s",
    }


async def test_the_chain_of_an_intermediate_is_put_in_order(vault):
    vault.intermediate()
    async with upstream(vault) as made:
        minted = await made.mint_x509_ca(CSR, 3600)
    assert minted.chain[1:] == (vault.issuer.der,)
    assert minted.roots == (vault.root.der,)


async def test_a_certificate_never_outlives_its_issuer(vault):
    """Vault signs intermediates past their issuer's end; one that ends with it is asked for instead."""
    vault.intermediate(ttl=timedelta(minutes=10))
    async with upstream(vault) as made:
        minted = await made.mint_x509_ca(CSR, 3600)
    assert read_certificate(minted.chain[0]).not_after == read_certificate(vault.issuer.der).not_after
    assert [sorted(set(one[3]) & {"ttl", "not_after"}) for one in vault.requests("sign-intermediate")] == [
        ["ttl"],
        ["not_after"],
    ]


async def test_an_issuer_about_to_end_is_said(vault):
    vault.intermediate(ttl=timedelta(seconds=30))
    async with upstream(vault) as made:
        assert "give the mount a new issuer" in await refusal(made)


async def test_the_root_of_the_newest_signature_is_shown(vault):
    """Vault does not say what it has given up; the core keeps what it was not told to take out."""
    async with upstream(vault) as made:
        await made.mint_x509_ca(CSR, 3600)
        vault.replace_root()
        await made.mint_x509_ca(CSR, 3600)
        assert [one.der for one in made.view.value.x509_authorities] == [vault.root.der]


async def test_jwt_keys_stay_local(vault):
    async with upstream(vault) as made:
        with pytest.raises(Unimplemented):
            await made.publish_jwt_authority(JwtAuthority("kid", spki_der(KEY.public_key())))
        with pytest.raises(Unimplemented):
            await made.publish_wit_authority(WitAuthority("kid", spki_der(KEY.public_key())))


async def test_namespace_and_mount_are_sent(tmp_path):
    with SimulatedVault(tmp_path, mount="team/pki").serving() as vault:
        vault.namespace = "platform/prod"
        async with upstream(vault, namespace="platform/prod", pki_mount="team/pki") as made:
            await made.mint_x509_ca(CSR, 3600)
    assert vault.requests("/v1/team/pki/root/sign-intermediate")


async def test_kubernetes_and_token_logins(vault):
    """Four ways to log in: AppRole above, client certificate below, and these."""
    token_file = vault.folder / "jwt"
    token_file.write_text(JWT + "\n")  # a projected token is readable by more than its owner
    kubernetes = {"role": ROLE, "token_file": str(token_file)}
    async with upstream(vault, approle_auth=None, kubernetes_auth=kubernetes) as made:
        await made.mint_x509_ca(CSR, 3600)
    async with upstream(vault, **token_auth(vault, vault.new_token())) as made:
        await made.mint_x509_ca(CSR, 3600)
    assert [one[1] for one in vault.asked].count("/v1/auth/kubernetes/login") == 1


async def test_a_client_certificate_logs_in_and_is_read_again(tmp_path):
    client = SpiffeTestCA("client.test")
    vault = SimulatedVault(tmp_path)
    vault.client_roots = client.der

    def write():
        leaf = client.issue("spiffe://client.test/server")
        (tmp_path / "client.pem").write_text(pem(*leaf.chain))
        key = leaf.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        secret(tmp_path / "client.key", key)

    write()
    files = {"client_cert_file": str(tmp_path / "client.pem"), "client_key_file": str(tmp_path / "client.key")}
    with vault.serving():
        async with upstream(vault, approle_auth=None, cert_auth=files) as made:
            await made.mint_x509_ca(CSR, 3600)
            write()
            vault.tokens.clear()
            await made.mint_x509_ca(CSR, 3600)
            (tmp_path / "client.key").unlink()
            assert "client_key_file" in await refusal(made)
    assert len(vault.requests("auth/cert/login")) == 2


async def test_a_token_is_renewed_at_two_thirds_of_its_life(tmp_path):
    with SimulatedVault(tmp_path, lease=3).serving() as vault:
        token = vault.new_token()
        async with upstream(vault, **token_auth(vault, token)):
            await until(lambda: len(vault.requests("renew-self")) >= 2)
    assert {one[2]["X-Vault-Token"] for one in vault.requests("renew-self")} == {token}


async def test_a_token_that_cannot_be_renewed_is_replaced_by_a_login(tmp_path):
    with SimulatedVault(tmp_path, lease=2, renewable=False).serving() as vault:
        async with upstream(vault) as made:
            await made.mint_x509_ca(CSR, 3600)
            await until(lambda: made._api._token is None)
            await made.mint_x509_ca(CSR, 3600)
    assert len(vault.requests("login")) >= 2
    assert not vault.requests("renew-self")


async def test_a_revoked_token_is_replaced_and_the_request_repeated_once(vault):
    async with upstream(vault) as made:
        await made.mint_x509_ca(CSR, 3600)
        vault.tokens.clear()
        await made.mint_x509_ca(CSR, 3600)
        assert len(vault.requests("login")) == 2
        vault.forbidden = True
        assert "the token's policy must have the capability `update`" in await refusal(made)
        assert len(vault.requests("sign-intermediate")) == 5


async def test_an_expired_token_file_is_said_and_a_new_one_is_taken(vault):
    """The refused token is not sent again and again; what the file holds next is."""
    async with upstream(vault, **token_auth(vault, "hvs.expired")) as made:
        assert "refuses the login at auth/token/lookup-self" in await refusal(made)
        secret(vault.folder / "token", vault.new_token())
        await made.mint_x509_ca(CSR, 3600)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        pytest.param((503, {"errors": ["Vault is sealed"]}), "is sealed or in maintenance", id="sealed"),
        pytest.param((500, {"errors": ["internal\nerror\x1b[31m"]}), "with status 500 (internal error", id="500"),
        pytest.param((400, {"errors": ["path length is zero"]}), "with status 400 (path length is zero)", id="400"),
        pytest.param((404, {"errors": []}), "check the mounts and the namespace", id="404"),
        pytest.param((307, b"", {"Location": "https://evil.test/"}), "redirect, which is not followed", id="redirect"),
        pytest.param((200, b"<html>"), "no sound JSON", id="html"),
        pytest.param((200, b'{"data": 1, "data": 2}'), "no sound JSON", id="twice"),
        pytest.param((200, b"[" * 100_000), "no sound JSON", id="deep"),
        pytest.param((200, b"[]"), "JSON that is no object", id="array"),
        pytest.param((200, b"\xff\xfe"), "no sound JSON", id="not-text"),
        pytest.param((200, {"data": {}}), "it must hold `certificate`", id="empty"),
        pytest.param((200, {"data": {"certificate": "x", "issuing_ca": "y"}}), "is not PEM", id="not-pem"),
        pytest.param((200, {"data": None}), "lacks a sound `data`", id="no-data"),
        pytest.param((200, b"a" * (1024 * 1024 + 1)), "more than 1048576 bytes", id="huge"),
        pytest.param(
            (200, {"data": {"certificate": "", "issuing_ca": "", "ca_chain": [""] * 40}}), "at most 32", id="many"
        ),
    ],
)
async def test_faults_are_named(vault, trouble, words):
    """And nothing of them sticks: the next request works."""
    async with upstream(vault) as made:
        await made.mint_x509_ca(CSR, 3600)
        vault.troubles.append(trouble)
        assert words in await refusal(made)
        await made.mint_x509_ca(CSR, 3600)


async def test_a_foreign_chain_is_refused(vault):
    """The answer's other certificates did not sign ours."""
    stranger = pem(SpiffeTestCA("stranger.test").der)
    ours = pem(SpiffeTestCA("pki.test").issue("spiffe://pki.test/x").chain[0])
    async with upstream(vault) as made:
        await made.mint_x509_ca(CSR, 3600)
        vault.troubles.append((200, {"data": {"certificate": ours, "issuing_ca": stranger, "ca_chain": [stranger]}}))
        assert "must lead from the certificate" in await refusal(made)


async def test_what_takes_too_long_is_cut_off(vault):
    """Silence, and an answer that comes byte by byte: both end with the time-out, and so do their threads."""

    def silent(handler):
        handler.rfile.read(1)

    def dripping(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.05)

    async with upstream(vault, seconds=0.5) as made:
        await made.mint_x509_ca(CSR, 3600)
        for fault in (silent, dripping, silent):  # three, and the client has two threads
            vault.troubles.append(fault)
            assert "did not answer within 0.5 s" in await refusal(made)
        await made.mint_x509_ca(CSR, 3600)


async def test_a_wrong_authority_and_a_closed_port_are_named(vault):
    other = vault.folder / "other.pem"
    other.write_text(pem(SpiffeTestCA("other.test").der))
    async with upstream(vault, ca_file=str(other)) as made:
        assert "is not believed" in await refusal(made)
    async with upstream(vault, address=f"https://127.0.0.1:{vault.port}") as made:
        assert "is not believed" in await refusal(made)  # the certificate is for localhost
    async with upstream(vault, address="https://localhost:1") as made:
        assert "cannot reach localhost:1: " in await refusal(made)


async def test_the_insecure_switch_believes_whoever_answers(vault):
    async with upstream(vault, ca_file=None, insecure_skip_verify=True) as made:
        await made.mint_x509_ca(CSR, 3600)


async def test_an_outage_heals_by_itself(tmp_path):
    vault = SimulatedVault(tmp_path)
    with vault.serving():
        async with upstream(vault) as made:
            await made.mint_x509_ca(CSR, 3600)
            vault.server.shutdown()
            vault.server.server_close()
            assert "cannot reach" in await refusal(made)
            with vault.serving():
                await made.mint_x509_ca(CSR, 3600)
                vault.server.shutdown()


@pytest.mark.parametrize("name", ["secret-id", "vault-ca.pem"])
async def test_files_are_checked_at_the_start(vault, name):
    with pytest.raises(ConfigError, match=r"upstream\.vault\."):
        settings = section(vault)
        (vault.folder / name).unlink()
        await VaultUpstream(settings, clock=SystemClock()).start()


async def test_secrets_that_others_may_read_are_refused(vault):
    settings = section(vault)
    (vault.folder / "secret-id").chmod(0o604)
    with pytest.raises(ConfigError, match="chmod 0600"):
        await VaultUpstream(settings, clock=SystemClock()).start()


async def test_no_secret_is_in_the_log(vault, caplog):
    caplog.set_level("DEBUG")
    async with upstream(vault) as made:
        await made.mint_x509_ca(CSR, 3600)
        vault.tokens.clear()
        vault.troubles.append((400, {"errors": [f"bad secret {SECRET_ID}"]}))
        await refusal(made)
    assert SECRET_ID not in caplog.text
    assert "hvs." not in caplog.text


async def test_a_whole_server_runs_below_it_and_its_root_is_replaced(vault):
    """All that Vault answers passes the core's checks; the mount's old root is tainted and revoked by command."""
    vault.intermediate()
    old = vault.root
    table = section(vault).model_dump(mode="json", exclude_none=True)
    async with live_server(upstream={"kind": "vault", "vault": table}) as server:
        assert server.state.bundles.own.x509_roots == (old.der,)
        assert len(server.server.own.identity.chain) == 3
        await server.join()
        vault.replace_root()
        answer = await server.local.PrepareX509Authority(pb.PrepareX509AuthorityRequest(), timeout=20)
        assert server.state.bundles.own.x509_roots == (old.der, vault.root.der)
        server.clock.move(11)
        chosen = answer.prepared_authority.authority_id
        await server.local.ActivateX509Authority(pb.ActivateX509AuthorityRequest(authority_id=chosen), timeout=20)
        key_id = X509Authority(old.der).key_id
        await server.local.TaintX509UpstreamAuthority(pb.TaintX509UpstreamAuthorityRequest(subject_key_id=key_id))
        await server.local.RevokeX509UpstreamAuthority(pb.RevokeX509UpstreamAuthorityRequest(subject_key_id=key_id))
        assert server.state.bundles.own.x509_roots == (vault.root.der,)
        csr = build_csr(generate(KeyKind.EC_P256), spiffe_id=SpiffeId.parse("spiffe://example.org/minted"))
        answer = await server.svid.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr), timeout=10)
        verify_x509_svid(tuple(answer.svid.cert_chain), server.state.bundles.get, now=server.clock.now())
