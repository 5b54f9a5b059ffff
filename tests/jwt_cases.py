"""JWT-SVIDs, good and spoilt in one way each: the N-J cases of validation, with the reason each is refused for.

Tokens are made by an independent little JOSE (tests/tokens.py). The validator is AUD, the time is NOW.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from spiffe_core.bundle import JwtAuthority, TrustBundle
from spiffe_core.bundle_document import load_bundle
from spiffe_core.crypto.jwk import key_to_jwk
from spiffe_core.crypto.keys import spki_der
from spiffe_core.errors import Reason
from spiffe_core.spiffe_id import TrustDomain
from tests.tokens import b64, token, unb64

NOW = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
T = int(NOW.timestamp())
TD, FED = TrustDomain("example.org"), TrustDomain("fed.test")
ID = "spiffe://example.org/web"
AUD = "https://api.example.org"

EC, EC2, FED_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
EC384, EC521 = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP521R1())
RSA = rsa.generate_private_key(65537, 2048)
ED = ed25519.Ed25519PrivateKey.generate()


def authority(kid: str, key: Any) -> JwtAuthority:
    return JwtAuthority(kid, spki_der(key.public_key()))


OWN = TrustBundle(
    TD,
    jwt_authorities=tuple(
        authority(kid, key) for kid, key in {"k": EC, "k2": EC2, "r": RSA, "e384": EC384, "e521": EC521}.items()
    ),
)
OTHER = TrustBundle(FED, jwt_authorities=(authority("f", FED_KEY), authority("k", FED_KEY)))
BUNDLES = {TD: OWN, FED: OTHER}
HEADER = {"alg": "ES256", "kid": "k", "typ": "JWT"}
CLAIMS = {"sub": ID, "aud": [AUD], "exp": T + 300, "iat": T}


def make(header: Any = None, claims: Any = None, key: Any = EC, algorithm: str = "ES256") -> str:
    """A good token with members changed; a value of None takes the member out."""
    return token(key, _merged(HEADER, header), _merged(CLAIMS, claims), algorithm=algorithm)


def _merged(base: dict[str, Any], over: Any) -> Any:
    if isinstance(over, str):
        return over
    return {name: value for name, value in {**base, **(over or {})}.items() if value is not None}


GOOD = make()
SIGNED, _, SIGNATURE = GOOD.rpartition(".")
HEAD, BODY = SIGNED.split(".")


ACCEPTED = {
    "N-J-20 no kid": make({"kid": None}),
    "JWT-10 no typ": make({"typ": None}),
    "JWT-10 typ JOSE": make({"typ": "JOSE"}),
    "JWT-11 further claims": make(None, {"iss": "x", "jti": "y", "https://example.org/x": {"deep": [1]}}),
    "JWT-16 one of several audiences": make(None, {"aud": ["other", AUD]}),
    "JWT-16 a single audience as text": make(None, {"aud": AUD}),
    "JWT-21 just expired, within the leeway": make(None, {"exp": T - 29}),
    "JWT-21 fractions of a second": make(None, {"exp": T + 0.5}),
    "JWT-22 nbf of ten seconds ago": make(None, {"nbf": T - 10}),
    "N-J-35 a far end": make(None, {"exp": T + 10 * 365 * 86_400}),
    "N-J-35 milliseconds": make(None, {"exp": (T + 300) * 1000}),
    "N-J-37 iat in the future without nbf": make(None, {"iat": T + 300}),
    "a federated domain's own token": make({"kid": "f"}, {"sub": "spiffe://fed.test/x"}, key=FED_KEY),
}


def low_s_der() -> str:
    """The good signature in DER."""
    raw = unb64(SIGNATURE)
    return b64(encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:])))


PEM = EC.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
ED_BUNDLE = load_bundle(
    json.dumps(
        {"keys": [{"use": "jwt-svid", "kty": "OKP", "crv": "Ed25519", "kid": "k", "x": b64(ED.public_key().public_bytes_raw())}]}
    ).encode(),
    TD,
).bundle  # fmt: skip

REFUSED: dict[str, tuple[str, Reason]] = {
    **{
        f"N-J-01 {text!r}": (text, Reason.MALFORMED)
        for text in ("", "a.b", "a.b.c.d", "..", f"{GOOD}.x.y", f".{BODY}.{SIGNATURE}", f"{HEAD}..{SIGNATURE}")
    },
    "N-J-02 flattened JSON": (
        json.dumps({"protected": HEAD, "payload": BODY, "signature": SIGNATURE}),
        Reason.MALFORMED,
    ),
    "N-J-02 general JSON": (
        json.dumps({"payload": BODY, "signatures": [{"protected": HEAD, "signature": SIGNATURE}]}),
        Reason.MALFORMED,
    ),
    "N-J-03 padding": (f"{SIGNED}.{SIGNATURE}==", Reason.MALFORMED),
    "N-J-03 a newline at the end": (f"{GOOD}\n", Reason.MALFORMED),
    "N-J-03 a space inside": (f"{HEAD}.{BODY[:5]} {BODY[5:]}.{SIGNATURE}", Reason.MALFORMED),
    "N-J-03 the other alphabet": (f"{SIGNED}.{'+/' * 43}", Reason.MALFORMED),
    "N-J-03 a second spelling of the last bits": (f"{SIGNED}.{SIGNATURE[:-1]}{chr(ord(SIGNATURE[-1]) + 1)}", Reason.MALFORMED),
    "N-J-04 a header that is a list": (token(EC, '["ES256"]', CLAIMS, algorithm="ES256"), Reason.MALFORMED),
    "N-J-04 a header that is text": (token(EC, '"ES256"', CLAIMS, algorithm="ES256"), Reason.MALFORMED),
    "N-J-04 a payload that is a number": (make(None, "5"), Reason.MALFORMED),
    "N-J-04 a payload that is not UTF-8": (
        f"{HEAD}.{b64(bytes([0xFF, 0xFE]))}.{SIGNATURE}",
        Reason.MALFORMED,
    ),
    "N-J-05 alg twice": (make('{"alg":"none","alg":"ES256"}'), Reason.MALFORMED),
    "N-J-05 sub twice": (make(None, json.dumps(CLAIMS)[:-1] + f',"sub":"{ID}"}}'), Reason.MALFORMED),
    "N-J-05 twice further down": (make(None, json.dumps(CLAIMS)[:-1] + ',"x":{"a":1,"a":2}}'), Reason.MALFORMED),
    **{
        f"N-J-06 {name}": (f"{b64(json.dumps({'alg': name}))}.{BODY}.{SIGNATURE}", Reason.WEAK_ALGORITHM)
        for name in ("none", "None", "nOnE")
    },
    "N-J-06 none with an empty signature": (f"{b64(json.dumps({'alg': 'none'}))}.{BODY}.", Reason.MALFORMED),
    **{
        f"N-J-07 HS256 keyed with the {what}": (make({"alg": "HS256"}, key=secret, algorithm="HS256"), Reason.WEAK_ALGORITHM)
        for what, secret in {
            "PEM": PEM,
            "DER": spki_der(EC.public_key()),
            "JWK": json.dumps(key_to_jwk(EC.public_key())).encode(),
        }.items()
    },
    "N-J-08 EdDSA": (make({"alg": "EdDSA"}, key=ED, algorithm="EdDSA"), Reason.WEAK_ALGORITHM),
    **{
        f"N-J-09 {name}": (make({"alg": name}), Reason.WEAK_ALGORITHM)
        for name in ("ES256K", "RS1", "es256", "ES256 ", "", 256, ["ES256"], True, {"a": 1})
    },
    "N-J-09 no alg": (make({"alg": None}), Reason.WEAK_ALGORITHM),
    "N-J-10 RS256 under the kid of an EC key": (make({"alg": "RS256"}, key=RSA, algorithm="RS256"), Reason.WEAK_ALGORITHM),
    "N-J-11 ES384 with a P-256 key": (make({"alg": "ES384"}), Reason.WEAK_ALGORITHM),
    "N-J-12 a DER signature": (f"{SIGNED}.{low_s_der()}", Reason.BAD_SIGNATURE),
    "N-J-12 r and s of zero": (f"{SIGNED}.{b64(bytes(64))}", Reason.BAD_SIGNATURE),
    "N-J-12 a short signature": (f"{SIGNED}.{b64(unb64(SIGNATURE)[:-1])}", Reason.BAD_SIGNATURE),
    "N-J-12 a long signature": (f"{SIGNED}.{b64(unb64(SIGNATURE) + b'x')}", Reason.BAD_SIGNATURE),
    **{
        f"N-J-14 typ {name!r}": (make({"typ": name}), Reason.BAD_HEADER)
        for name in ("at+jwt", "wit+jwt", "dpop+jwt", "jwt", "", 5, ["JWT"], False)
    },
    **{
        f"N-J-15 {name}": (make({name: value}), Reason.BAD_HEADER)
        for name, value in {
            "jku": "https://evil.test/keys",
            "x5u": "https://evil.test/cert",
            "jwk": key_to_jwk(EC2.public_key()),
            "x5c": ["AA=="],
            "cty": "JWT",
            "zip": "DEF",
            "b64": False,
            "foo": 1,
        }.items()
    },
    **{
        f"N-J-16 crit {value!r}": (make({"crit": value, **more}), Reason.BAD_HEADER)
        for value, more in ((["urn:x"], {"urn:x": 1}), ([], {}), (["alg"], {}))  # type: ignore[var-annotated]  # empty
    },
    "N-J-17 an unknown kid": (make({"kid": "z"}), Reason.UNKNOWN_AUTHORITY),
    "N-J-18 a kid that is a number": (make({"kid": 5}), Reason.BAD_HEADER),
    "N-J-18 an empty kid": (make({"kid": ""}), Reason.BAD_HEADER),
    "N-J-18 a long kid": (make({"kid": "k" * 1025}), Reason.BAD_HEADER),
    "N-J-18 a kid of 1 MB": (make({"kid": "k" * 1_000_000}), Reason.TOO_LARGE),
    "N-J-18 a path": (make({"kid": "../../k"}), Reason.UNKNOWN_AUTHORITY),
    "N-J-18 SQL": (make({"kid": "k' OR '1'='1"}), Reason.UNKNOWN_AUTHORITY),
    "N-J-18 other letters": (make({"kid": "K"}), Reason.UNKNOWN_AUTHORITY),
    "N-J-19 the kid of one key, the signature of another": (make({"kid": "k2"}), Reason.BAD_SIGNATURE),
    "N-J-21 a flipped bit": (f"{SIGNED}.{b64(bytes([unb64(SIGNATURE)[0] ^ 1, *unb64(SIGNATURE)[1:]]))}", Reason.BAD_SIGNATURE),
    "N-J-21 another payload": (f"{HEAD}.{make(None, {'sub': ID + '2'}).split('.')[1]}.{SIGNATURE}", Reason.BAD_SIGNATURE),
    "N-J-21 another header": (f"{make({'typ': None}).split('.')[0]}.{BODY}.{SIGNATURE}", Reason.BAD_SIGNATURE),
    "N-J-24 signed across trust domains": (make(None, {"sub": "spiffe://fed.test/x"}), Reason.BAD_SIGNATURE),
    "N-J-24 under a kid of ours": (make({"kid": "k2"}, {"sub": "spiffe://fed.test/x"}, key=EC2), Reason.UNKNOWN_AUTHORITY),
    "N-J-25 a domain without a bundle": (make(None, {"sub": "spiffe://nobody.test/x"}), Reason.NO_BUNDLE),
    "N-J-26 one kid in two bundles": (make({"kid": "k"}, key=FED_KEY), Reason.BAD_SIGNATURE),
    **{
        f"N-J-28 sub {value!r}": (make(None, {"sub": value}), reason)
        for value, reason in (
            (None, Reason.NO_SPIFFE_ID),
            (5, Reason.NO_SPIFFE_ID),
            ([ID], Reason.NO_SPIFFE_ID),
            ("", Reason.BAD_SPIFFE_ID),
            ("https://example.org/web", Reason.BAD_SPIFFE_ID),
            ("spiffe://Example.org/web", Reason.BAD_SPIFFE_ID),
            ("spiffe://example.org/web/", Reason.BAD_SPIFFE_ID),
            ("spiffe://example.org/%77eb", Reason.BAD_SPIFFE_ID),
        )
    },
    "N-J-28 an ID of a lone surrogate": (make(None, json.dumps(CLAIMS)[:-1] + ',"x":"\\ud800"}'), Reason.MALFORMED),
    "N-J-29 the trust domain itself": (make(None, {"sub": "spiffe://example.org"}), Reason.BAD_SPIFFE_ID),
    **{
        f"N-J-30 aud {value!r}": (make(None, json.dumps({**CLAIMS, "aud": value})), Reason.BAD_CLAIM)
        for value in (None, [], "", [""], 5, {}, {AUD: 1}, [AUD, 5], True)
    },
    "N-J-30 no aud": (make(None, {"aud": None}), Reason.BAD_CLAIM),
    **{
        f"N-J-31 aud {value!r}": (make(None, {"aud": value}), Reason.UNEXPECTED_AUDIENCE)
        for value in (["other"], AUD[:-1], AUD + "x", AUD.upper(), AUD + "/", AUD + " ", [AUD + "/", "x"])
    },
    "S42 10,000 audiences and ours not among them": (
        make(None, {"aud": [f"https://{number}" for number in range(10_000)]}),
        Reason.TOO_LARGE,
    ),
    **{
        f"N-J-33 exp {text}": (make(None, json.dumps({**CLAIMS, "exp": 0}).replace('"exp": 0', f'"exp": {text}')), reason)
        for text, reason in (
            ("null", Reason.BAD_CLAIM),
            ('"1900000000"', Reason.BAD_CLAIM),
            ("true", Reason.BAD_CLAIM),
            ("[1]", Reason.BAD_CLAIM),
            ("-1", Reason.BAD_CLAIM),
            ("1" + "0" * 400, Reason.BAD_CLAIM),
            ("1e400", Reason.MALFORMED),
            ("NaN", Reason.MALFORMED),
            ("Infinity", Reason.MALFORMED),
            ("9" * 5000, Reason.MALFORMED),
        )
    },
    "N-J-33 no exp": (make(None, {"exp": None}), Reason.BAD_CLAIM),
    "N-J-34 expired beyond the leeway": (make(None, {"exp": T - 300}), Reason.EXPIRED),
    "N-J-34 exactly at the end of the leeway": (make(None, {"exp": T - 30}), Reason.EXPIRED),
    "N-J-36 nbf in five minutes": (make(None, {"nbf": T + 300}), Reason.NOT_YET_VALID),
    "N-J-36 nbf as text": (make(None, {"nbf": str(T)}), Reason.BAD_CLAIM),
    "N-J-38 a service account token without our audience": (
        make(None, {"iss": "https://kubernetes.default.svc", "aud": ["https://kubernetes.default.svc"]}),
        Reason.UNEXPECTED_AUDIENCE,
    ),
    "N-J-39 a WIT-SVID": (make({"typ": "wit+jwt"}, {"aud": None, "cnf": {"jwk": {}}}), Reason.BAD_HEADER),
    "N-J-39 a WIT-SVID in a JWT's clothes": (make(None, {"aud": None, "cnf": {"jwk": {}}}), Reason.BAD_CLAIM),
    "N-J-40 a token of 1 MB": (make(None, {"x": "x" * 1_000_000}), Reason.TOO_LARGE),
    "N-J-40 too many claims": (make(None, {f"c{n}": 0 for n in range(300)}), Reason.MALFORMED),
    "N-J-40 a very deep claim": (make(None, json.dumps(CLAIMS)[:-1] + ',"x":' + "[" * 10_000 + "]" * 10_000 + "}"), Reason.MALFORMED),
}  # fmt: skip
