"""Our server below a root in files, with a stock agent and SPIRE's own commands (spire_features sections 2.5 and 20)."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.demo.stack import BIN, LocalStack
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.certificates import key_id_of, read_certificate
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA, trusting
from tests.doubles.upstream_files import UpstreamFiles
from tests.interop.peers import until
from tests.interop.spire import Commands, Failed, StockAgent, certificates, fetched, spire_binaries

pytestmark = pytest.mark.slow

TD = TrustDomain("below.test")
NODE = "spiffe://below.test/node"


def authority(name: str) -> SpiffeTestCA:
    return SpiffeTestCA(TD.name, name=name, uris=(), ttl=timedelta(days=30))


def key_id(ca: SpiffeTestCA) -> str:
    return X509Authority(ca.der).key_id


@pytest.fixture
def files(folder: Path) -> UpstreamFiles:
    (folder / "pki").mkdir(mode=0o700, exist_ok=True)
    return UpstreamFiles(folder / "pki")


@pytest.fixture
def server(files: UpstreamFiles) -> Iterator[LocalStack]:
    """Our server below "old", an intermediate of the root "old root"."""
    old = authority("old root")
    files.below(old.intermediate(name="old", uris=(), ttl=timedelta(days=9)), old)
    lines = [f'{key} = "{path}"' for key, path in files.settings(bundle=True)["disk"].items()]  # type: ignore[attr-defined]  # a table
    with LocalStack(TD.name, server="\n".join(['[upstream]\nkind = "disk"\n[upstream.disk]', *lines])) as stack:
        stack.start_server()
        (stack.folder / "bundle.pem").write_text(stack.admin("bundle", "show"))
        yield stack


def chain_of(svid: dict[str, Any]) -> list[bytes]:
    return [one.public_bytes(Encoding.DER) for one in certificates(base64.b64decode(svid["x509_svid"]))]


def test_a_stock_agent_rotates_when_the_root_is_replaced_by_spires_commands(
    server: LocalStack, files: UpstreamFiles, folder: Path
) -> None:
    """It takes our chain, serves it whole, and replaces everything when the upstream root is tainted; go-spiffe verifies."""
    binaries = spire_binaries()
    agent = StockAgent(
        binaries, folder / "a", trust_domain=TD.name, port=server.port, bundle=server.folder / "bundle.pem"
    )
    stock = Commands(binaries / "spire-server", server.admin_socket)
    ours = Commands(BIN / "identity-server", server.admin_socket)
    token = str(server.admin_json("token", "generate", "-spiffeID", NODE)["value"])
    path = f"unix:path:{(binaries / 'spire-agent').resolve()}"
    server.admin("entry", "create", "-parentID", NODE, "-spiffeID", "spiffe://below.test/web", "-selector", path)
    old_root = x509.load_pem_x509_certificate(files.roots.read_bytes())
    old = key_id_of(read_certificate(old_root.public_bytes(Encoding.DER)))
    try:
        agent.start(token)
        until(lambda: bool(fetched(agent.program, agent.socket)))

        def chain() -> list[bytes]:
            return chain_of(fetched(agent.program, agent.socket)[0])

        def verified(root: bytes) -> bool:
            roots = trusting(TrustBundle(TD, (X509Authority(root),)))
            return bool(verify_x509_svid(chain(), roots, now=SystemClock().now()))

        assert len(chain()) == 3
        assert verified(old_root.public_bytes(Encoding.DER))
        first = stock.json("localauthority", "x509", "show")
        assert first == ours.json("localauthority", "x509", "show")
        issuer = first["active"]["upstream_authority_subject_key_id"]
        assert issuer == key_id_of(read_certificate(chain()[2]))
        new = authority("new root")
        files.below(new.intermediate(name="new", uris=(), ttl=timedelta(days=9)), new)
        prepared = stock.json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
        stock("localauthority", "x509", "activate", "-authorityID", prepared)
        assert stock.json("upstreamauthority", "taint", "-subjectKeyID", issuer) == {
            "upstream_authority_subject_key_id": issuer
        }
        until(lambda: X509Authority(chain()[1]).key_id == prepared, 40)
        assert verified(new.der)
        said = stock("upstreamauthority", "taint", "-subjectKeyID", old)
        assert said == ours("upstreamauthority", "taint", "-subjectKeyID", old), "printed alike"
        assert "Tainted X.509 upstream authority" in said
        until(lambda: "Successfully rotated agent SVID" in agent.log, 40)  # it looks at its own every five seconds
        said = stock("upstreamauthority", "revoke", "-subjectKeyID", old)
        assert "Revoked X.509 upstream authority" in said
        until(lambda: base64.b64decode(fetched(agent.program, agent.socket)[0]["bundle"]) == new.der, 40)
        assert agent.info()["svid_chain"]
    finally:
        agent.close()


def test_both_command_lines_are_refused_alike(server: LocalStack) -> None:
    """Spire_wire 5.6: InvalidArgument and the words, on the server that signs below an upstream."""
    binaries = spire_binaries()
    active = server.admin_json("localauthority", "x509", "show")["active"]["upstream_authority_subject_key_id"]
    for words, said in (
        (("upstreamauthority", "taint", "-subjectKeyID", active), "unable to use upstream authority singing current"),
        (("upstreamauthority", "revoke", "-subjectKeyID", "00"), "upstream authority didn't sign the old local"),
        (("upstreamauthority", "taint"), "the Subject Key ID of the X.509 upstream authority is required"),
        (("localauthority", "x509", "taint", "-authorityID", "00"), "if there is an upstream authority"),
    ):
        for program in (binaries / "spire-server", BIN / "identity-server"):
            with pytest.raises(Failed) as caught:
                Commands(program, server.admin_socket)(*words)
            assert said in str(caught.value), (program.name, words)
