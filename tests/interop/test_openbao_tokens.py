"""What `cloud check vault` prints makes a real OpenBao or Vault take our JWT-SVIDs, and no others (issue 6 item 5)."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from identity_server.cli.cloud_fetch import fetched
from identity_server.domain.cloud_check import Presented, Subject, findings
from identity_server.domain.cloud_configuration import commands
from identity_server.domain.oidc_documents import configuration_document, key_set
from identity_server.domain.verifier_rules import VERIFIERS
from spiffe_core.bundle import JwtAuthority, TrustBundle
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.spiffe_id import TrustDomain
from tests.doubles.https_double import HttpsDouble
from tests.doubles.kube_api import KubePki
from tests.interop.openbao import OpenBao
from tests.tokens import token

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]

KEY = generate(KeyKind.EC_P256)
BUNDLE = TrustBundle(TrustDomain("example.org"), jwt_authorities=(JwtAuthority("k1", spki_der(KEY.public_key())),))
WEB, DB = "spiffe://example.org/web", "spiffe://example.org/db"


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[str, Path]]:
    """The issuer's URL, and the CA of its certificate."""
    with tempfile.TemporaryDirectory(prefix="muniment-") as folder:
        pki, answers = KubePki(Path(folder)), {}
        with HttpsDouble(*pki.pair("oidc"), lambda _m, path, *_: answers.get(path, (404, b"{}"))) as double:
            url = f"https://127.0.0.1:{double.port}"
            answers["/.well-known/openid-configuration"] = (200, configuration_document(url, f"{url}/keys"))
            answers["/keys"] = (200, key_set(BUNDLE.jwt_authorities, use=True))
            yield url, pki.ca


@pytest.fixture(scope="module")
def bao(site: tuple[str, Path]) -> Iterator[OpenBao]:
    """With each command carried out by the API, as `vault write PATH NAME=VALUE...` does."""
    url, ca = site
    with tempfile.TemporaryDirectory(prefix="muniment-") as folder:
        server = OpenBao(Path(folder))
        try:
            server.wait()
            for one in commands("vault", url, [WEB, DB], ["vault"], ["ES256"], ca_file=str(ca)):
                words = shlex.split(one)
                if words[1] == "auth":
                    assert words == ["vault", "auth", "enable", "jwt"]
                    server.call("POST", "sys/auth/jwt", type="jwt")
                    continue
                body: dict[str, Any] = dict(word.split("=", 1) for word in words[3:])
                for name, value in body.items():
                    body[name] = Path(value[1:]).read_text() if value.startswith("@") else value
                server.call("POST", words[2], **body)
            yield server
        finally:
            server.close()


def svid(site: tuple[str, Path], **over: Any) -> str:
    now = int(SystemClock().now().timestamp())
    claims = {"iss": site[0], "sub": WEB, "aud": ["vault"], "iat": now, "exp": now + 300, **over}
    return token(KEY, {"alg": "ES256", "kid": "k1", "typ": "JWT"}, claims)


def test_the_check_finds_nothing_and_a_token_logs_in(site: tuple[str, Path], bao: OpenBao) -> None:
    """From the discovery URL alone."""
    url, ca = site
    presented = Presented(url, BUNDLE, (Subject(WEB), Subject(DB)), ("vault",))
    assert findings(VERIFIERS["vault"], presented) == ()
    assert fetched(VERIFIERS["vault"], presented, ca_file=str(ca)) == ()
    answer = bao.call("POST", "auth/jwt/login", role="web", jwt=svid(site))
    assert answer["auth"]["client_token"]


@pytest.mark.parametrize(
    "over",
    [{"sub": DB}, {"aud": ["other"]}, {"iss": "https://elsewhere.example.org"}],
    ids=["subject", "audience", "issuer"],
)
def test_a_token_for_somebody_else_does_not(site: tuple[str, Path], bao: OpenBao, over: dict[str, Any]) -> None:
    """The role's bounds are those that were printed."""
    with pytest.raises(AssertionError, match="400"):
        bao.call("POST", "auth/jwt/login", role="web", jwt=svid(site, **over))
