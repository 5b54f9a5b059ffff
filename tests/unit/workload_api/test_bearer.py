"""JWT-SVIDs in headers and metadata, and all that is no credential (JWT-25, JWT-26, N-J-41, N-W-18)."""

import base64

import pytest

from spiffe_core.crypto.jose import MAX_TOKEN_BYTES
from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.jwt_verify import VerifiedJwtSvid, verify_jwt_svid
from tests.jwt_cases import AUD, BUNDLES, GOOD, NOW, make
from workload_api.bearer import bearer, bearer_token

BASIC = base64.b64encode(f"user:{GOOD}".encode()).decode()


def verify(token: str) -> VerifiedJwtSvid:
    return verify_jwt_svid(token, BUNDLES.get, audience=(AUD,), now=NOW)


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_header_is_read_in_any_case(name: str, scheme: str) -> None:
    """JWT-25: beside other headers; what comes out is verified as it is."""
    token = bearer_token([("Host", "api"), (name, f"{scheme} {GOOD}"), ("Accept", "*/*")])
    assert token == GOOD
    assert verify(token)


def test_what_is_sent_is_what_is_read() -> None:
    """JWT-25, JWT-26: the name in lower case, as gRPC's metadata asks for."""
    name, value = bearer(GOOD)
    assert (name, value) == ("authorization", f"Bearer {GOOD}")
    assert bearer_token([(name, value)]) == GOOD


NO_CREDENTIALS = {
    "N-J-41 nothing": [],
    "N-J-41 Basic": [("Authorization", f"Basic {BASIC}")],
    "N-J-41 Basic with the token itself": [("Authorization", f"Basic {GOOD}")],
    "N-J-41 the bare token": [("Authorization", GOOD)],
    "N-J-41 two headers": [("Authorization", f"Bearer {GOOD}"), ("authorization", f"Bearer {GOOD}")],
    "N-J-41 a second scheme beside it": [("Authorization", f"Bearer {GOOD}"), ("Authorization", f"Basic {BASIC}")],
    "N-J-41 twice in one header": [("Authorization", f"Bearer {GOOD}, Bearer {GOOD}")],
    "N-J-41 the scheme twice": [("Authorization", f"Bearer Bearer {GOOD}")],
    "N-J-41 the scheme run into the token": [("Authorization", f"Bearer{GOOD}")],
    "N-J-41 no token": [("Authorization", "Bearer ")],
    "N-J-41 two spaces": [("Authorization", f"Bearer  {GOOD}")],
    "N-J-41 a tab": [("Authorization", f"Bearer\t{GOOD}")],
    "N-J-41 spaces around it": [("Authorization", f" Bearer {GOOD} ")],
    "N-J-41 a line break behind it": [("Authorization", f"Bearer {GOOD}\n")],
    "N-J-41 in the query string": [(":path", f"/?access_token={GOOD}"), ("Referer", f"https://api/?token={GOOD}")],
    "N-J-41 in a cookie": [("Cookie", f"authorization={GOOD}; token={GOOD}")],
    "N-J-41 in a header of another name": [("X-Authorization", f"Bearer {GOOD}"), ("Proxy-Authorization", GOOD)],
    "N-J-41 binary metadata": [("authorization", f"Bearer {GOOD}".encode())],
    "N-J-41 binary metadata of its own": [("authorization-bin", f"Bearer {GOOD}")],
    "N-J-41 more than any token": [("Authorization", "Bearer " + "a" * MAX_TOKEN_BYTES)],
}


@pytest.mark.parametrize("headers", NO_CREDENTIALS.values(), ids=NO_CREDENTIALS)
def test_what_is_no_credential(headers: list[tuple[str, str | bytes]]) -> None:
    """N-J-41: not taken as one, though the token in it is good."""
    assert verify(GOOD)
    assert bearer_token(headers) is None


def test_a_wit_svid_is_no_bearer_token() -> None:
    """N-W-18, WIT-32: whoever finds one in the header refuses it when it is validated."""
    wit = make({"typ": "wit+jwt"}, {"aud": None, "cnf": {"jwk": {}}})
    token = bearer_token([bearer(wit)])
    assert token == wit
    with pytest.raises(VerificationFailed) as failure:
        verify(wit)
    assert failure.value.reason is Reason.BAD_HEADER
