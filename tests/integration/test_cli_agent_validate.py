"""`node-agent api validate x509|wit`: chains and tokens verified with the bundles an agent shows, over real gRPC."""

import hashlib
import io
import json
import sys
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from node_agent.cli import main
from node_agent.cli.streams import SERVICE as WORKLOAD
from spiffe_core.bundle import WitAuthority
from spiffe_core.bundle_document import dump_token_keys
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.jwk import key_to_jwk
from spiffe_core.crypto.keys import spki_der
from spiffe_core.crypto.pem import certificates_pem
from spiffe_core.errors import InvalidRequest, NoIdentityIssued
from spiffe_core.wire._gen import workload_pb2
from tests.authority import CLIENT_AUTH, SpiffeTestCA
from tests.doubles.canned_daemon import canned_daemon, leave_code
from tests.tokens import b64, token

CA, STRANGER = SpiffeTestCA(), SpiffeTestCA()
SIGNER, HOLDER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
AUDIENCE = "https://api.example.org"


class Agent:
    """The bundles of one trust domain; `fail` is raised first."""

    fail = None

    def _begin(self, context):
        if dict(context.invocation_metadata()).get("workload.spiffe.io") != "true":
            raise InvalidRequest("security header missing from request")
        if self.fail:
            raise self.fail

    async def FetchX509Bundles(self, _request, context):
        self._begin(context)
        yield workload_pb2.X509BundlesResponse(bundles={"spiffe://example.org": CA.der + SpiffeTestCA().der})

    async def FetchWITBundles(self, _request, context):
        self._begin(context)
        keys = dump_token_keys([WitAuthority("k", spki_der(SIGNER.public_key()))])
        yield workload_pb2.WITBundlesResponse(bundles={"spiffe://example.org": keys.decode()})


@pytest.fixture
def agent(tmp_path, monkeypatch):
    answers = Agent()
    with canned_daemon(tmp_path / "w.sock", {WORKLOAD: answers}) as path:
        monkeypatch.delenv("SPIRE_AGENT_PUBLIC_SOCKET", raising=False)
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", f"unix://{path}")
        yield answers


def validate(*words):
    return leave_code(main, "api", "validate", *words)


def pem_file(folder, svid):
    path = folder / "peer.pem"
    path.write_bytes(certificates_pem(svid.chain))
    return str(path)


def test_a_chain_that_is_valid_is_shown(agent, tmp_path, capsys):
    """X509-SVID section 5; through an intermediate; both spellings of the flag."""
    svid = CA.intermediate().issue()
    path = pem_file(tmp_path, svid)
    assert validate("x509", "-svid", path) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["SVID is valid.", "SPIFFE ID : spiffe://example.org/workload"]
    assert shown[2] == f"Valid till: {svid.not_after:%Y-%m-%d %H:%M:%S} UTC"
    assert validate("x509", "--svid", path, "--purpose", "server", "--output", "json") == 0
    expected = {"spiffe_id": "spiffe://example.org/workload", "expires_at": int(svid.not_after.timestamp())}
    assert json.loads(capsys.readouterr().out) == expected


BAD_CHAINS = {
    "a stranger's": (STRANGER.issue, ()),
    "of a trust domain without a bundle": (lambda: SpiffeTestCA("fed.test").issue(), ()),
    "expired": (lambda: CA.issue(ttl=timedelta(seconds=-5)), ()),
    "not for servers": (lambda: CA.issue(eku=(CLIENT_AUTH,)), ("--purpose", "server")),
}


@pytest.mark.parametrize("case", BAD_CHAINS)
def test_a_chain_that_is_not_valid_is_a_failure(agent, tmp_path, capsys, case):
    make, words = BAD_CHAINS[case]
    assert validate("x509", "--svid", pem_file(tmp_path, make()), *words) == 1
    shown = capsys.readouterr()
    assert "SVID is not valid: " in shown.err
    assert shown.out == ""


def test_a_file_that_is_no_chain_and_an_agent_that_refuses_are_said(agent, tmp_path, capsys):
    (tmp_path / "empty").write_text("nothing")
    assert validate("x509", "--svid", str(tmp_path / "empty")) == 1
    assert "must hold 1 to 1000 certificates" in capsys.readouterr().err
    agent.fail = NoIdentityIssued()
    assert validate("x509", "--svid", pem_file(tmp_path, CA.issue())) == 1
    assert "no identity issued" in capsys.readouterr().err


def wit_and_proof(audience=AUDIENCE, signer=SIGNER):
    now = int(SystemClock().now().timestamp())
    confirmed = {**key_to_jwk(HOLDER.public_key()), "alg": "ES256"}
    claims = {"sub": "spiffe://example.org/web", "exp": now + 600, "iat": now, "cnf": {"jwk": confirmed}}
    wit = token(signer, {"alg": "ES256", "kid": "k", "typ": "wit+jwt"}, claims)
    wth = b64(hashlib.sha256(wit.encode()).digest())
    proof = token(
        HOLDER, {"alg": "ES256", "typ": "wpt+jwt"}, {"aud": audience, "exp": now + 60, "jti": "1", "wth": wth}
    )
    return wit, proof


def test_a_wit_svid_is_valid_with_its_proof_alone(agent, capsys, monkeypatch):
    """WIT-30, WIT-32, WIT-40."""
    wit, proof = wit_and_proof()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{wit}\n{proof}\n"))
    assert validate("wit", "--audience", AUDIENCE, "--output", "json") == 0
    assert json.loads(capsys.readouterr().out)["spiffe_id"] == "spiffe://example.org/web"
    assert validate("wit", "--audience", AUDIENCE, "--svid", wit, "--proof", proof) == 0
    assert "SPIFFE ID : spiffe://example.org/web\n" in capsys.readouterr().out
    for words in (("--svid", wit), ("--proof", proof)):
        assert validate("wit", "--audience", AUDIENCE, *words) == 1
        assert "with its proof" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO(wit))
    assert validate("wit", "--audience", AUDIENCE) == 1
    assert "two lines" in capsys.readouterr().err
    for bad in (wit_and_proof("https://elsewhere"), wit_and_proof(signer=HOLDER), (wit, wit_and_proof()[0])):
        assert validate("wit", "--audience", AUDIENCE, "--svid", bad[0], "--proof", bad[1]) == 1
        shown = capsys.readouterr()
        assert "SVID is not valid: " in shown.err
        assert not [piece for piece in wit.split(".")[1:] if piece in shown.err]
