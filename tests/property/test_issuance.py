"""Laws of issuing: whatever is asked for, what comes out verifies, says exactly what was planned, or does not exist."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from identity_server.domain.issuance import parent_of, prepare, sign
from identity_server.domain.profiles import MAX_SERIAL, Profile, plan_ca, plan_leaf
from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.keys import KeyKind, generate, to_pkcs8
from spiffe_core.errors import InvalidRequest
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_svid import X509Svid
from spiffe_core.x509_verify import verify_x509_svid

NOW = 1_893_456_000
DAY = 86_400
KEYS = [generate(KeyKind.EC_P256), generate(KeyKind.EC_P384), generate(KeyKind.RSA_2048)]
LEAF_KEYS = [generate(KeyKind.EC_P256), generate(KeyKind.EC_P384), generate(KeyKind.RSA_2048)]

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,60}", fullmatch=True)
segments = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True)
paths = (
    st.lists(segments, min_size=1, max_size=6)
    .map(lambda parts: "/" + "/".join(parts))
    .filter(lambda path: not path.startswith("/spire"))
)
hosts = st.lists(st.from_regex(r"[a-z]{1,20}(\.[a-z]{2,20}){1,4}", fullmatch=True), max_size=5, unique=True).map(tuple)
serials = st.integers(1, MAX_SERIAL)


@settings(deadline=None, max_examples=120)
@given(
    domain=names,
    path=paths,
    dns_names=hosts,
    serial=serials,
    ca_serial=serials,
    ttl=st.integers(1, 2**31 - 1),
    life=st.integers(1, 20 * 365 * DAY),
    age=st.integers(0, 20 * 365 * DAY),
    ca_key=st.sampled_from(KEYS),
    leaf_key=st.sampled_from(LEAF_KEYS),
)
def test_what_is_issued_verifies_against_the_bundle_and_says_what_was_planned(  # type: ignore[no-untyped-def]  # drawn above
    domain, path, dns_names, serial, ca_serial, ttl, life, age, ca_key, leaf_key
) -> None:
    """verify(sign(x)) for our own strict verifier; S20, S37, S38, X509-01."""
    trust_domain = TrustDomain(domain)
    issued_at, now = NOW, NOW + age % life
    root = sign(
        prepare(plan_ca(trust_domain, ca_key.public_key(), lifetime=life, now=issued_at, serial=ca_serial)), ca_key
    )
    spiffe_id = SpiffeId(trust_domain, path)
    plan = plan_leaf(
        Profile.WORKLOAD,
        parent_of(root),
        spiffe_id,
        leaf_key.public_key(),
        ttl=ttl,
        now=now,
        serial=serial,
        dns_names=dns_names,
    )
    leaf = sign(prepare(plan), ca_key)
    bundle = TrustBundle(trust_domain).with_x509_authority(root)
    verified = verify_x509_svid(
        [leaf], lambda asked: bundle if asked == trust_domain else None, now=datetime.fromtimestamp(now, UTC)
    )
    assert spiffe_id == verified.spiffe_id
    svid = X509Svid.load((leaf,), to_pkcs8(leaf_key))
    assert spiffe_id == svid.spiffe_id
    parsed = x509.load_der_x509_certificate(leaf)
    end = int(parsed.not_valid_after_utc.timestamp())
    assert (min(now + ttl, issued_at + life), now - 10, serial) == (
        end,
        int(parsed.not_valid_before_utc.timestamp()),
        parsed.serial_number,
    )


@settings(deadline=None, max_examples=200)
@given(
    path=st.sampled_from(["", "/spire", "/spire/server", "/spire/agent/x", "/spire/agent", "/web", "/spired"]),
    profile=st.sampled_from(Profile),
)
def test_a_profile_certifies_its_own_ids_and_no_others(path: str, profile: Profile) -> None:
    """S20: no path makes a workload's certificate pass for the server's or an agent's."""
    root = sign(
        prepare(plan_ca(TrustDomain("example.org"), KEYS[0].public_key(), lifetime=DAY, now=NOW, serial=1)), KEYS[0]
    )
    fits = {
        Profile.WORKLOAD: path in {"/web", "/spired"},
        Profile.AGENT: path == "/spire/agent/x",
        Profile.SERVER: path == "/spire/server",
        Profile.CA: False,
    }
    try:
        plan_leaf(
            profile,
            parent_of(root),
            SpiffeId(TrustDomain("example.org"), path),
            LEAF_KEYS[0].public_key(),
            ttl=9,
            now=NOW,
            serial=9,
        )
    except InvalidRequest:
        assert not fits[profile]
    else:
        assert fits[profile]


def test_a_batch_gives_each_its_own_key_and_id() -> None:
    """S27: 500 items over one authority; none shares a serial, a key or an ID with its neighbour."""
    root = sign(
        prepare(plan_ca(TrustDomain("example.org"), KEYS[0].public_key(), lifetime=DAY, now=NOW, serial=1)), KEYS[0]
    )
    parent = parent_of(root)
    keys = [generate(KeyKind.EC_P256) for _ in range(500)]
    tickets = [
        prepare(
            plan_leaf(
                Profile.WORKLOAD,
                parent,
                SpiffeId(parent.trust_domain, f"/w/{number}"),
                key.public_key(),
                ttl=60,
                now=NOW,
                serial=number + 1,
            )
        )
        for number, key in enumerate(keys)
    ]
    for number, (key, ticket) in enumerate(zip(keys, tickets, strict=True)):
        leaf = x509.load_der_x509_certificate(sign(ticket, KEYS[0]))
        names_ = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [f"spiffe://example.org/w/{number}"] == names_.get_values_for_type(x509.UniformResourceIdentifier)
        assert (key.public_key(), number + 1) == (leaf.public_key(), leaf.serial_number)
