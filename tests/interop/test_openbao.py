"""The vault upstream against a real OpenBao or Vault server: signatures, chains, logins, tokens, policies, sealing."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from identity_server.domain.minted_ca import MintedCa, check_minted
from identity_server.services.upstream_lines import ca_request
from identity_server.settings_upstream_network import UpstreamVaultSection
from identity_server.upstream.vault import VaultUpstream
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import Unavailable
from tests.authority import SpiffeTestCA
from tests.builders import TD
from tests.doubles.live_server import live_server
from tests.doubles.simulated_vault import pem
from tests.interop.openbao import OpenBao

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]

KEY = generate(KeyKind.EC_P256)
SUBJECT = x509.Name(
    [x509.NameAttribute(NameOID.COUNTRY_NAME, "US"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "O")]
)
CSR = ca_request(KEY, TD, SUBJECT, 12345)
CLOCK = SystemClock()


@pytest.fixture(scope="module")
def bao() -> Iterator[OpenBao]:
    with tempfile.TemporaryDirectory(prefix="muniment-") as folder:
        server = OpenBao(Path(folder))
        try:
            server.wait()
            server.mount_pki("pki")
            server.intermediate_pki("team", below="pki")
            server.mount_pki("brief", ttl="10m")
            server.call("POST", "sys/auth/approle", type="approle")
            server.call("POST", "sys/auth/cert", type="cert")
            yield server
        finally:
            server.close()


def secret(bao: OpenBao, name: str, text: str) -> str:
    path = bao.folder / name
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def settings(bao: OpenBao, **over: Any) -> dict[str, Any]:
    return {"address": f"https://127.0.0.1:{bao.port}", "ca_file": str(bao.ca_file), **over}


def token_auth(bao: OpenBao, token: str) -> dict[str, Any]:
    return {"token_auth": {"token_file": secret(bao, "token", token)}}


def approle_auth(bao: OpenBao, policy: str = "pki", ttl: str = "1h") -> dict[str, Any]:
    role_id, secret_id = bao.approle(policy, ttl)
    return {"approle_auth": {"role_id": role_id, "secret_id_file": secret(bao, "secret-id", secret_id)}}


@asynccontextmanager
async def upstream(bao: OpenBao, **over: Any) -> AsyncIterator[VaultUpstream]:
    made = VaultUpstream(UpstreamVaultSection.model_validate(settings(bao, **over)), clock=CLOCK)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def mint(made: VaultUpstream, ttl: int = 3600) -> MintedCa:
    """A CA certificate, checked as the server checks it: our key, one URI SAN, chain, lifetimes."""
    given = await made.mint_x509_ca(CSR, ttl)
    return check_minted(given, KEY.public_key(), TD, int(CLOCK.now().timestamp()))


async def test_what_it_signs_is_what_was_asked_for(bao: OpenBao) -> None:
    """sign-intermediate with use_csr_values: subject, serial number, URI SAN and lifetime of our request, below its root."""
    async with upstream(bao, **approle_auth(bao)) as made:
        minted = await mint(made)
    ours = read_certificate(minted.chain[0])
    assert ours.subject == x509.load_der_x509_csr(CSR).subject
    assert len(minted.chain) == 1
    assert abs(minted.not_after - CLOCK.now().timestamp() - 3600) < 60
    assert ours.alternative_names is not None
    assert len(list(ours.alternative_names)) == 1


async def test_the_chain_of_an_intermediate_has_no_root_in_it(bao: OpenBao) -> None:
    async with upstream(bao, pki_mount="team", **approle_auth(bao, "team")) as made:
        minted = await mint(made)
    root, middle = read_certificate(minted.roots[0]), read_certificate(minted.chain[1])
    assert (len(minted.chain), root.self_issued, middle.issuer) == (2, True, root.subject)


async def test_a_ca_ends_with_its_issuer(bao: OpenBao) -> None:
    """It signs a CA past the end of its own certificate, if asked to."""
    async with upstream(bao, pki_mount="brief", **approle_auth(bao, "brief")) as made:
        minted = await mint(made)
    assert read_certificate(minted.chain[0]).not_after == read_certificate(minted.roots[0]).not_after


async def test_a_client_certificate_logs_in(bao: OpenBao) -> None:
    named = (("CN", "muniment"),)  # OpenBao names whoever logs in by the certificate's common name
    client = SpiffeTestCA("client.test").issue("spiffe://client.test/server", subject=named)
    bao.call("POST", "auth/cert/certs/muniment", certificate=pem(client.chain[0]), token_policies=["pki"])
    key = client.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    files = {
        "client_cert_file": secret(bao, "client.pem", pem(client.chain[0])),
        "client_key_file": secret(bao, "client.key", key),
    }
    async with upstream(bao, cert_auth=files) as made:
        await mint(made)


async def test_a_token_is_kept_alive_past_its_first_life(bao: OpenBao) -> None:
    """renew-self at two thirds of six seconds, without a signature in between."""
    token = bao.token("pki", "6s")
    async with upstream(bao, **token_auth(bao, token)) as made:
        await asyncio.sleep(9)  # it would be gone: its own end is what is waited for
        await mint(made)


async def test_a_revoked_token_is_replaced_by_a_login(bao: OpenBao) -> None:
    async with upstream(bao, **approle_auth(bao)) as made:
        await mint(made)
        held = made._api._token
        assert held is not None
        bao.call("POST", "auth/token/revoke", token=held.value)
        await mint(made)


async def test_refusals_say_what_to_do(bao: OpenBao) -> None:
    """A policy that lacks the path, a secret that is wrong, a mount that is not there."""
    async with upstream(bao, **approle_auth(bao, "team")) as made:
        with pytest.raises(Unavailable, match="policy must have the capability `update`"):
            await made.mint_x509_ca(CSR, 3600)
    wrong = approle_auth(bao)
    secret(bao, "secret-id", "not-this-one")
    async with upstream(bao, **wrong) as made:
        with pytest.raises(Unavailable, match="auth/approle/login"):
            await made.mint_x509_ca(CSR, 3600)
    async with upstream(bao, pki_mount="nothing", **token_auth(bao, bao.root_token)) as made:
        with pytest.raises(Unavailable, match="check the mounts and the namespace"):
            await made.mint_x509_ca(CSR, 3600)
    async with upstream(bao, **token_auth(bao, "hvs.nobody")) as made:
        with pytest.raises(Unavailable, match="refuses the login at auth/token/lookup-self"):
            await made.mint_x509_ca(CSR, 3600)


async def test_a_whole_server_runs_below_it(bao: OpenBao) -> None:
    """Its bundle is the root of the mount, and its own certificate comes with the chain."""
    over = {"kind": "vault", "vault": settings(bao, pki_mount="team", **approle_auth(bao, "team"))}
    async with live_server(upstream=over) as server:
        (root,) = server.state.bundles.own.x509_roots
        assert read_certificate(root).self_issued
        assert len(server.server.own.identity.chain) == 3
        await server.join()  # the agent verifies all of it


async def test_sealed_is_said(bao: OpenBao) -> None:
    """The last test of this server: nobody unseals it."""
    async with upstream(bao, **approle_auth(bao)) as made:
        await mint(made)
        bao.call("POST", "sys/seal")
        with pytest.raises(Unavailable, match="is sealed or in maintenance"):
            await made.mint_x509_ca(CSR, 3600)
