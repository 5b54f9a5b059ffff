"""`cloud check` by command, and its fetch against real HTTPS (issue 6 item 5)."""

import hashlib
import json
from pathlib import Path

import pytest

from identity_server.cli.cloud_fetch import fetched
from identity_server.domain.cloud_check import Presented
from identity_server.domain.oidc_documents import configuration_document, key_set
from identity_server.domain.verifier_rules import VERIFIERS
from spiffe_core.bundle import JwtAuthority, TrustBundle
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.runtime.pem_material import read_pem_certificates
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire.convert_bundle import bundle_to_proto
from tests.doubles.canned_daemon import canned_daemon
from tests.doubles.https_double import HttpsDouble
from tests.doubles.kube_api import KubePki
from tests.doubles.scripted_server import BUNDLE_SERVICE, ENTRY_SERVICE, Server, command, printed

TD = TrustDomain("example.org")
ISSUER = "https://oidc.example.org"


def keys(kind=KeyKind.RSA_2048):
    return TrustBundle(TD, jwt_authorities=(JwtAuthority("key-1", spki_der(generate(kind).public_key())),))


def make_entry(path, parent="/node", ttl=0):
    return entry_types.Entry(
        id=path,
        spiffe_id={"trust_domain": "example.org", "path": path},
        parent_id={"trust_domain": "example.org", "path": parent},
        selectors=[{"type": "unix", "value": "uid:1"}],
        jwt_svid_ttl=ttl,
    )


@pytest.fixture
def server(tmp_path, monkeypatch):
    answers = Server()
    answers.jwt_keys = bundle_to_proto(keys()).jwt_authorities
    answers.entries = [make_entry("/web"), make_entry("/db", ttl=60), make_entry("/node", "/spire/server")]
    with canned_daemon(tmp_path / "a.sock", dict.fromkeys((ENTRY_SERVICE, BUNDLE_SERVICE), answers)) as path:
        monkeypatch.setenv("SPIRE_SERVER_PRIVATE_SOCKET", path)
        yield answers


def test_a_verifier_that_takes_everything_is_told_what_to_do(server, capsys):
    """Exit code 0; aliases of nodes are no subjects."""
    assert command("cloud", "check", "aws", "--issuer", ISSUER) == 0
    shown = printed(capsys)
    assert shown.startswith("AWS: 2 SPIFFE IDs looked at\nNothing found that stands in the way.\n")
    assert f"aws iam create-open-id-connect-provider --url {ISSUER} --client-id-list sts.amazonaws.com" in shown
    assert '"oidc.example.org:sub": "spiffe://example.org/web"' in shown


def test_what_will_fail_ends_with_exit_code_1_and_says_what_to_do(server, capsys):
    """With the code, the fix and who says so; the commands leave out what cannot work."""
    server.entries.append(make_entry("/" + "x" * 200))
    assert command("cloud", "check", "gcp", "--issuer", ISSUER, "-output", "json") == 1
    told = json.loads(printed(capsys))
    assert [(one["code"], one["severity"]) for one in told["findings"]] == [("CLOUD-SUBJECT-LENGTH", "error")]
    assert told["findings"][0]["fix"]
    assert "google.subject" in told["findings"][0]["source"]
    assert len(told["subjects"]) == 3
    assert "xxx" not in "".join(told["configuration"])


def test_without_an_issuer_there_is_nothing_to_run(server, capsys):
    """And that is the finding."""
    assert command("cloud", "check", "vault") == 1
    shown = printed(capsys)
    assert "CLOUD-ISSUER-UNKNOWN" in shown
    assert "To be run" not in shown


def test_the_issuer_is_read_from_the_servers_configuration(server, tmp_path, capsys):
    """As the tokens have it."""
    path = tmp_path / "server.toml"
    path.write_text(f'trust_domain = "example.org"\n[jwt]\nissuer = "{ISSUER}"\n')
    wanted = ("--spiffe-id", "spiffe://example.org/db")
    assert command("cloud", "check", "vault", "--config", str(path), *wanted) == 0
    shown = printed(capsys)
    assert (
        f"vault write auth/jwt/config oidc_discovery_url={ISSUER} bound_issuer={ISSUER} jwt_supported_algs=RS256"
        in shown
    )
    assert "bound_subject=spiffe://example.org/db" in shown
    assert "example.org/web" not in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--issuer", ISSUER, "--config", "x"), "give one of them"),
        (("--issuer", ISSUER, "--spiffe-id", "spiffe://example.org/nobody"), "no entry"),
        (("--issuer", ISSUER, "--audience", "a b"), "to stand in a command"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(server, capsys, words, told):
    """With what to do."""
    assert command("cloud", "check", "aws", *words) == 1
    captured = capsys.readouterr()
    assert told in captured.err + captured.out


@pytest.fixture
def site(tmp_path):
    """(its URL, its answers by path, the file of its CA)."""
    pki = KubePki(tmp_path)
    answers = {}
    with HttpsDouble(*pki.pair("oidc"), lambda _m, path, *_: answers.get(path, (404, b"{}"))) as double:
        yield f"https://127.0.0.1:{double.port}", answers, str(pki.ca)


def codes(url, bundle, ca=None):
    return [one.code for one in fetched(VERIFIERS["aws"], Presented(url, bundle), ca_file=ca)]


def test_the_documents_are_fetched_and_compared(site):
    """Right ones have no findings; old keys and another issuer have."""
    url, answers, ca = site
    bundle = keys()
    answers["/.well-known/openid-configuration"] = (200, configuration_document(url, f"{url}/keys"))
    answers["/keys"] = (200, key_set(bundle.jwt_authorities, use=True))
    assert codes(url, bundle, ca) == []
    answers["/keys"] = (200, key_set(keys(KeyKind.EC_P256).jwt_authorities[:0], use=True))
    assert codes(url, bundle, ca) == ["CLOUD-DOCUMENT-KEYS"]
    answers["/.well-known/openid-configuration"] = (200, configuration_document(f"{url}/x", f"{url}/keys"))
    assert codes(url, bundle, ca) == ["CLOUD-DOCUMENT-ISSUER", "CLOUD-DOCUMENT-KEYS"]


@pytest.mark.parametrize(
    "answer",
    [
        (404, b"{}"),
        (200, b"no JSON"),
        (200, b"{}"),
        (200, b'{"jwks_uri":"http://x/keys"}'),
        (200, b'{"jwks_uri":"https://x:y/"}'),
    ],
)
def test_documents_that_are_none_are_findings(site, answer):
    """Never a traceback."""
    url, answers, ca = site
    answers["/.well-known/openid-configuration"] = answer
    assert codes(url, keys(), ca) == ["CLOUD-DOCUMENT-UNREACHABLE"]


def test_an_authority_of_ones_own_is_told_to_those_who_take_it(server, site, capsys):
    """By thumbprint to AWS, by file to Vault; Google Cloud and Azure take none."""
    words = ("--issuer", ISSUER, "--ca-file", site[2])
    assert command("cloud", "check", "aws", *words) == 0
    der = read_pem_certificates(Path(site[2]), field="ca")[0]
    assert f"--thumbprint-list {hashlib.sha1(der).hexdigest()}" in printed(capsys)
    assert command("cloud", "check", "vault", *words) == 0
    assert f"oidc_discovery_ca_pem=@{site[2]}" in printed(capsys)
    for verifier in ("gcp", "azure"):
        assert command("cloud", "check", verifier, *words) == 1
        assert "CLOUD-CERTIFICATE-PRIVATE" in printed(capsys)


def test_a_certificate_that_the_system_does_not_believe_is_a_finding(site):
    """As it would be for the verifier."""
    url, _, _ = site
    (one,) = fetched(VERIFIERS["aws"], Presented(url, keys()))
    assert one.code == "CLOUD-DOCUMENT-UNREACHABLE"
    assert "not believed" in one.text
    assert "public authority" in one.fix
