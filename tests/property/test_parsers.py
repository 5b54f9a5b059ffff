"""Whoever writes the bytes, a parser answers or refuses in its own words, soon (S29).

Each parser of bytes from outside is fed with sound documents that were spoiled (bytes set, cut, inserted, repeated) and
with noise. Anything but the parser's own refusal fails, and so does a second of CPU time. MUNIMENT_FUZZ_EXAMPLES sets how
many documents each is given.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

import identity_server.settings
import node_agent.settings
from attestors.cgroups import container_of
from attestors.json_objects import read_object as read_json_object
from attestors.procfs import parse_pid_namespace_depth, parse_start_time, parse_status
from identity_server.web.client_hello import read_hello
from spiffe_core.bundle import JwtAuthority, TrustBundle, X509Authority
from spiffe_core.bundle_document import (
    dump_bundle,
    dump_bundle_map,
    dump_bundle_pem,
    load_bundle,
    load_bundle_map,
    load_bundle_pem,
    load_token_keys,
)
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.crypto.csr import build_csr, parse_csr, proven_key
from spiffe_core.crypto.jose import encode_part, sign_compact
from spiffe_core.crypto.keys import KeyKind, from_pkcs8, from_spki, generate, spki_der, to_pkcs8
from spiffe_core.crypto.revocation import revocation_lists
from spiffe_core.errors import IdentityError
from spiffe_core.jwt_svid import jwt_claims, jwt_header
from spiffe_core.jwt_verify import verify_jwt_svid
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.types import bundle_pb2, entry_pb2
from spiffe_core.wire.http2_meter import Abuse, FrameWalker
from spiffe_core.wit_verify import verify_wit_svid
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA, trusting
from tests.builders import TD, make_entry
from tests.doubles.floods import END_HEADERS, HEADER_BLOCK, HEADERS, PREFACE, SETTINGS, frame
from workload_api.x509_context import split_der

EXAMPLES = int(os.environ.get("MUNIMENT_FUZZ_EXAMPLES", "25"))
CPU_SECONDS = 1.0
NOW = datetime(2030, 6, 1, tzinfo=UTC)
ROOT = Path(__file__).resolve().parents[2]

CA = SpiffeTestCA(now=NOW)
SVID = CA.intermediate().issue(dns=("web.example.org",))
KEY = generate(KeyKind.EC_P256)
JWT_KEY = generate(KeyKind.EC_P256)
CSR = build_csr(KEY, spiffe_id=SpiffeId(TD, "/web"))
BUNDLE = TrustBundle(TD, (X509Authority(CA.der),), (JwtAuthority("kid", spki_der(JWT_KEY.public_key())),), (), 7, 300)
TRUSTED = trusting(BUNDLE)
TOKEN = sign_compact(
    encode_part(jwt_header("ES256", "kid")),
    encode_part(
        jwt_claims(SpiffeId(TD, "/web"), ("us",), issued_at=int(NOW.timestamp()), expires_at=int(NOW.timestamp()) + 300)
    ),
    JWT_KEY,
).encode()
CRL = (
    x509.CertificateRevocationListBuilder()
    .issuer_name(x509.load_der_x509_certificate(CA.der).subject)
    .last_update(NOW)
    .next_update(NOW + timedelta(days=1))
    .sign(KEY, hashes.SHA256())
)
STATUS = (
    b"Name:\tx\nUmask:\t0022\nUid:\t1000\t1001\t1002\t1003\nGid:\t100\t101\t102\t103\nGroups:\t4 24 27 \nNSpid:\t7\t1\n"
)
STAT = b"7 (x) S 1 7 7 0 -1 4194560 100 0 0 0 1 2 3 4 20 0 1 0 987654 1024 300 18446744073709551615"
POD = "2c48913c_b29f_11e7_9350_020968147796"
CGROUP = f"0::/kubepods.slice/kubepods-pod{POD}.slice/cri-containerd-{'9b' * 32}.scope\n1:cpu:/\n".encode()
FRAMES = (
    PREFACE + frame(SETTINGS, 0, 0, bytes(6)) + frame(HEADERS, END_HEADERS, 1, HEADER_BLOCK) + frame(0, 1, 1, bytes(9))
)
HELLO = bytes.fromhex(
    "160301002d0100002903030000000000000000000000000000000000000000000000000000000000000000000002130101000000"
)


def toml(model_load):
    """A settings file is read from a file."""

    def load(data):
        with tempfile.NamedTemporaryFile(suffix=".toml") as file:
            file.write(data)
            file.flush()
            model_load(file.name)

    return load


PARSERS = {
    "certificate signing request": ([CSR], parse_csr),
    "proof of a key": ([CSR], proven_key),
    "certificate": ([CA.der, SVID.chain[0]], read_certificate),
    "chain of certificates": (
        [b"".join(SVID.chain)],
        lambda data: verify_x509_svid(split_der(data, field="x"), TRUSTED, now=NOW, purpose="client"),
    ),
    "private key": ([to_pkcs8(KEY).reveal()], from_pkcs8),
    "public key": ([spki_der(KEY.public_key())], from_spki),
    "revocation list": ([CRL.public_bytes(Encoding.DER)], lambda data: revocation_lists([data])),
    "JWT": (
        [TOKEN],
        lambda data: verify_jwt_svid(data.decode("utf-8", "replace"), TRUSTED, audience={"us"}, now=NOW),
    ),
    "WIT and its proof": (
        [TOKEN + b" " + TOKEN],
        lambda data: verify_wit_svid(
            *(data.decode("utf-8", "replace") + " ").split(" ", 2)[:2], TRUSTED, audience="us", now=NOW
        ),
    ),
    "bundle": ([dump_bundle(BUNDLE)], lambda data: load_bundle(data, TD)),
    "bundle map": ([dump_bundle_map([BUNDLE])], load_bundle_map),
    "PEM bundle": ([dump_bundle_pem(BUNDLE)], lambda data: load_bundle_pem(data, TD)),
    "JWKS": ([dump_bundle(BUNDLE)], lambda data: load_token_keys(data, TD, "jwt-svid")),
    "SPIFFE ID": ([b"spiffe://example.org/web/a.b_c-d"], lambda data: SpiffeId.parse(data.decode("utf-8", "replace"))),
    "trust domain": ([b"example.org"], lambda data: TrustDomain.parse(data.decode("utf-8", "replace"))),
    "selector": (
        [b"unix:uid:1000", b"k8s:pod-label:a:b"],
        lambda data: Selector.parse(data.decode("utf-8", "replace")),
    ),
    "entry message": (
        [convert.entry_to_proto(make_entry(id="a")).SerializeToString()],
        lambda data: convert.entry_from_proto(entry_pb2.Entry.FromString(data), trust_domain=TD),
    ),
    "bundle message": (
        [convert.bundle_to_proto(BUNDLE).SerializeToString()],
        lambda data: convert.bundle_from_proto(bundle_pb2.Bundle.FromString(data)),
    ),
    "agent's settings": ([(ROOT / "deploy/config/agent.toml").read_bytes()], toml(node_agent.settings.load)),
    "server's settings": ([(ROOT / "deploy/config/server.toml").read_bytes()], toml(identity_server.settings.load)),
    "/proc/PID/status": ([STATUS], parse_status),
    "NSpid": ([STATUS], parse_pid_namespace_depth),
    "/proc/PID/stat": ([STAT], parse_start_time),
    "/proc/PID/cgroup": (
        [CGROUP],
        lambda data: container_of(data.decode("utf-8", "surrogateescape")),
    ),
    "a cluster's JSON": (
        [b'{"kind": "TokenReview", "status": {"user": {"extra": {"a": ["b"]}, "n": 1e3}}}'],
        lambda data: read_json_object(data, 10_000, field="x", what="a review"),
    ),
    "HTTP/2 frames": ([FRAMES], lambda data: FrameWalker().price(data)),
    "TLS client hello": ([HELLO], read_hello),
}
REFUSALS = (IdentityError, DecodeError, Abuse)
PLAIN = {"/proc/PID/status", "NSpid", "/proc/PID/stat"}
"""These say ValueError; their caller makes it "no such process"."""


@st.composite
def spoiled(draw, seeds):
    """A sound document with one to four spoilt places; now and then noise, or the document itself."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        some = draw(st.integers(1, 40))
        match draw(st.sampled_from(["set", "cut", "insert", "repeat"])):
            case "set":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del data[at : at + some]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=12))
            case _:
                data[at:at] = bytes(data[at : at + some]) * draw(st.integers(1, 200))
    return bytes(data)


@pytest.mark.filterwarnings("ignore:Attribute's length must be")  # what the library says of an odd country
@pytest.mark.parametrize("name", PARSERS)
def test_any_bytes_are_read_or_refused_and_soon(name):
    """S29, N-C-01, S19: no other exception, no second of CPU."""
    seeds, parse = PARSERS[name]
    refusals = (*REFUSALS, ValueError) if name in PLAIN else REFUSALS

    @settings(max_examples=EXAMPLES)
    @given(spoiled(seeds))
    def read(data):
        begun = time.thread_time()
        with contextlib.suppress(*refusals):
            parse(data)
        assert time.thread_time() - begun < CPU_SECONDS

    read()


@pytest.mark.parametrize("name", [name for name in PARSERS if name != "WIT and its proof"])
def test_each_parser_is_given_something_it_takes(name):
    """Without that the documents above would only show that nonsense is refused; for WITs tests of their own show it."""
    seeds, parse = PARSERS[name]
    for seed in seeds:
        parse(seed)
