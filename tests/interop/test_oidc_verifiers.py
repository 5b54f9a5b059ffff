"""Our JWT-SVIDs verified by others who know the issuer's URL and nothing else, over HTTPS with a private CA (issue 6, item 5).

PyJWT with its own key client, and Go's coreos/go-oidc with go-jose: what Kubernetes, Vault and many products use.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.demo.stack import LocalStack, free_port
from identity_server.rpc.services import LOCAL_AUTHORITY, SVID
from spiffe_core.clock import SystemClock
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.channels import channel_options
from spiffe_core.wire.services import Stub
from tests.doubles.web_certificate import write_web_certificate
from tests.interop.go_program import build_go_program
from tests.interop.openbao import OpenBao
from tests.interop.peers import HERE, ROOT, Program, lacking, until
from tests.tokens import parts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]

AUDIENCE = "https://api.interop.test"
WEB = "spiffe://interop.test/web"
WEB_ID = {"trust_domain": "interop.test", "path": "/web"}
VERIFIERS = ("pyjwt", "go-oidc")
SHORT = 1
"""Seconds of life of a token that is to be expired."""


class Provider:
    """A server that is its own discovery provider, on a port that stands in its issuer."""

    def __init__(self, stack: LocalStack, folder: Path, port: int) -> None:
        self.folder = folder
        self._socket = stack.admin_socket
        self.issuer = f"https://localhost:{port}"
        self.elsewhere = f"https://127.0.0.1:{port}"

    def token(self, audience: str = AUDIENCE, ttl: int = 300) -> str:
        request = svid_pb2.MintJWTSVIDRequest(id=WEB_ID, audience=[audience], ttl=ttl)
        with self._service(SVID) as service:
            return str(service.MintJWTSVID(request, timeout=20).svid.token)

    def rotate(self) -> str:
        """The key ID that signs from now on."""
        with self._service(LOCAL_AUTHORITY) as service:
            prepare = localauthority_pb2.PrepareJWTAuthorityRequest()
            prepared = service.PrepareJWTAuthority(prepare, timeout=20).prepared_authority.authority_id
            activate = localauthority_pb2.ActivateJWTAuthorityRequest(authority_id=prepared)
            service.ActivateJWTAuthority(activate, timeout=30)
        return str(prepared)

    @contextmanager
    def _service(self, described: Any) -> Iterator[Any]:
        with grpc.insecure_channel(f"unix:{self._socket}", options=channel_options()) as channel:
            yield Stub(channel, described)


def serving(folder: Path, port: int, key_type: str) -> str:
    return (
        f'[jwt]\nissuer = "https://localhost:{port}"\nkey_type = "{key_type}"\n'
        f'[oidc]\ndomains = ["localhost", "127.0.0.1"]\n[oidc.serving_cert_file]\naddr = "127.0.0.1:{port}"\n'
        f'cert_file_path = "{folder}/web.pem"\nkey_file_path = "{folder}/web.key"\n'
    )


@pytest.fixture(scope="module")
def provider(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    folder, port = tmp_path_factory.mktemp("oidc"), free_port()
    write_web_certificate(folder)
    with LocalStack("interop.test", server=serving(folder, port, getattr(request, "param", "ec-p256"))) as stack:
        stack.start_server()
        yield Provider(stack, folder, port)


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_go_program(tmp_path_factory.mktemp("go"))


def pyjwt() -> list[str]:
    found = sorted(ROOT.glob(".venv-foreign/bin/python"))
    if not found:
        lacking("foreign", "the foreign client is not installed; make .venv-foreign/.installed")
    return [str(found[0]), str(HERE / "pyjwt_verifier.py")]


Start = Callable[..., Program]


def argv_of(name: str, request: pytest.FixtureRequest) -> list[str]:
    return pyjwt() if name == "pyjwt" else [str(request.getfixturevalue("go")), "oidc"]


@pytest.fixture
def start(request: pytest.FixtureRequest, provider: Provider, tmp_path: Path) -> Iterator[Start]:
    """Start a verifier that knows the issuer, the audience and a CA."""
    with ExitStack() as running:

        def run(name: str, issuer: str = provider.issuer, audience: str = AUDIENCE) -> Program:
            words = [*argv_of(name, request), issuer, audience, str(provider.folder / "web-ca.pem")]
            log = tmp_path / f"{name}.log"
            return running.enter_context(Program(words, env=dict(os.environ), log=log, told=True))

        yield run


def verdict(verifier: Program, token: str, event: str) -> dict[str, Any]:
    verifier.tell(token)
    return verifier.hear(event)


@pytest.mark.parametrize("provider", ["ec-p256", "rsa-2048"], indirect=True)
@pytest.mark.parametrize("name", VERIFIERS)
def test_a_token_is_verified_from_the_issuers_url_alone(provider: Provider, start: Start, name: str) -> None:
    """Discovery sections 3 and 4, JWT-SVID sections 3 to 5: issuer, keys with use and alg, subject, audience."""
    verifier = start(name)
    found = verifier.hear("discovered")
    token = provider.token()
    header, _ = parts(token)
    assert header["alg"] in found["algorithms"]
    assert header["kid"] in [key["kid"] for key in found["keys"]]
    assert {(key["use"], key["alg"]) for key in found["keys"]} == {("sig", header["alg"])}
    assert all(key.get("valid", True) and key.get("public", True) for key in found["keys"])
    told = verdict(verifier, token, "verified")
    assert (told["iss"], told["sub"]) == (provider.issuer, WEB)
    assert told["aud"] in (AUDIENCE, [AUDIENCE])


@pytest.mark.parametrize("name", VERIFIERS)
def test_another_audience_an_expired_token_and_a_spoilt_one_are_refused(
    provider: Provider, start: Start, name: str
) -> None:
    verifier = start(name)
    verifier.hear("discovered")
    expiring = provider.token(ttl=SHORT)
    assert "udience" in verdict(verifier, provider.token("somebody else"), "refused")["text"]
    good = provider.token()
    first, _, last = good.rpartition(".")
    assert "ignature" in verdict(verifier, f"{first}.{'A' * len(last)}", "refused")["text"]
    end = parts(expiring)[1]["exp"]
    until(lambda: SystemClock().now().timestamp() > end)
    assert "expired" in verdict(verifier, expiring, "refused")["text"]
    verdict(verifier, good, "verified")


@pytest.mark.parametrize("name", VERIFIERS)
def test_an_issuer_that_says_it_is_another_is_refused(provider: Provider, start: Start, name: str) -> None:
    """Discovery section 4.3: the same documents under another name of the same host."""
    assert provider.issuer in start(name, issuer=provider.elsewhere).hear("refused")["text"]


def test_a_rotation_is_seen_by_verifiers_that_keep_keys(provider: Provider, start: Start) -> None:
    """Who knows the old keys finds the new one by its key ID, and believes the old one until it is gone."""
    verifiers = [start(name) for name in VERIFIERS]
    before = provider.token()
    for verifier in verifiers:
        verifier.hear("discovered")
        verdict(verifier, before, "verified")
    coming = provider.rotate()
    after = provider.token()
    assert parts(after)[0]["kid"] == coming != parts(before)[0]["kid"]
    for verifier in verifiers:
        verdict(verifier, after, "verified")
        verdict(verifier, before, "verified")


@pytest.fixture(scope="module")
def bao() -> Iterator[OpenBao]:
    with tempfile.TemporaryDirectory(prefix="muniment-") as folder:
        server = OpenBao(Path(folder))
        try:
            yield server.wait()
        finally:
            server.close()


def test_vault_logs_our_workloads_in_through_a_rotation(bao: OpenBao, provider: Provider) -> None:
    """OpenBao's auth method `jwt`, told the issuer and the CA: it finds the key that signs from now on by itself."""
    ca, issuer = (provider.folder / "web-ca.pem").read_text(), provider.issuer
    bao.call("POST", "sys/auth/jwt", type="jwt")
    names = {"oidc_discovery_url": issuer, "bound_issuer": issuer, "oidc_discovery_ca_pem": ca}
    bao.call("POST", "auth/jwt/config", **names, jwt_supported_algs=["ES256"])
    role = {"role_type": "jwt", "user_claim": "sub", "bound_subject": WEB, "bound_audiences": [AUDIENCE]}
    bao.call("POST", "auth/jwt/role/web", **role, token_policies=["default"])

    def login(token: str) -> Any:
        return bao.call("POST", "auth/jwt/login", role="web", jwt=token)["auth"]["entity_id"]

    before = login(provider.token())
    with pytest.raises(AssertionError, match="400"):
        login(provider.token("somebody else"))
    provider.rotate()
    assert login(provider.token()) == before, "the same workload to Vault"
