"""Authorities below an upstream: the order of things, bad answers, outages, and following its view (R1, R11, S37, A15)."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from identity_server.domain.access import Caller, CallerKind
from identity_server.domain.history import HistoryChange, Position
from identity_server.domain.upstream import UpstreamCa
from identity_server.services.lost_history import LostHistory
from identity_server.services.trust_bundles import TrustBundles
from identity_server.services.upstream_lines import MAX_PAUSE_SECONDS, MINT_SECONDS
from spiffe_core.bundle import JwtAuthority, X509Authority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import Conflict, InvalidRequest, PreconditionFailed, Unavailable
from tests.authority import SpiffeTestCA
from tests.doubles.clock import START
from tests.doubles.nested_server import TD, Nested, Silent, ca

HOUR = 3_600
ADMIN = Caller(CallerKind.LOCAL, "test")


@pytest.fixture
def nested() -> Nested:
    return Nested()


def ids(*roots: SpiffeTestCA) -> list[str]:
    return [X509Authority(one.der).key_id for one in roots]


async def test_root_and_authority_are_stored_in_one_command(nested: Nested) -> None:
    """Nothing is signed by a key whose root is not in the stored bundle; our own certificate never stands there."""
    await nested.start()
    assert nested.bundle.x509_roots == (nested.root.der,)
    assert nested.bundle.sequence == 1
    assert nested.active.anchor_id == ids(nested.root)[0]
    assert nested.issue()[1:] == nested.active.upstream_chain
    request = x509.load_der_x509_csr(nested.upstream.requests[0])
    san = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(san) == [x509.UniformResourceIdentifier("spiffe://example.org")]
    assert request.subject.rfc4514_string().endswith("O=SPIFFE,C=US")
    nested.database.bundles[TD] = nested.bundle.without_x509_authority(nested.active.anchor_id)
    nested.store.reload()
    with pytest.raises(Unavailable):
        nested.issue()


OTHER = ca("other")
STRANGER = generate(KeyKind.EC_P256)


def add_root(given: UpstreamCa) -> UpstreamCa:
    object.__setattr__(given, "chain", (*given.chain, *given.roots))
    return given


BAD: dict[str, dict[str, Any]] = {
    "another key": {"over": {"key": STRANGER}},
    "a weak key": {"over": {"key": rsa.generate_private_key(65537, 1024)}},
    "no CA": {"over": {"ca": False}},
    "no keyCertSign": {"over": {"usage": frozenset({"crl_sign"})}},
    "no key usage": {"over": {"usage": None}},
    "another trust domain": {"over": {"uris": ("spiffe://example.com",)}},
    "an ID with a path": {"over": {"uris": ("spiffe://example.org/spire/server",)}},
    "two IDs": {"over": {"uris": ("spiffe://example.org", "spiffe://example.org")}},
    "no ID": {"over": {"uris": ()}},
    "no key identifier": {"over": {"key_ids": False}},
    "no subject": {"over": {"subject": ()}},
    "client certificates only": {"over": {"eku": (x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH,)}},
    "expired": {"over": {"not_before": START - timedelta(days=2), "not_after": START - timedelta(days=1)}},
    "not valid yet": {"over": {"not_before": START + timedelta(minutes=5)}},
    "about to end": {"over": {"not_after": START + timedelta(seconds=20)}},
    "outlives its issuer": {"over": {"not_after": START + timedelta(days=31)}},
    "a wrong signature": {"over": {"signer": OTHER.key}},
    "no path to a root": {"spoil": lambda given: UpstreamCa(given.chain, (OTHER.der,))},
    "garbage": {"spoil": lambda given: UpstreamCa((b"\x30\x03garbage",), given.roots)},
    "garbage for a root": {"spoil": lambda given: UpstreamCa(given.chain, (b"\x30\x00",))},
    "a certificate too many": {"spoil": lambda given: UpstreamCa((*given.chain, OTHER.der), given.roots)},
    "the root in the chain": {"spoil": add_root},
    "too much": {"spoil": lambda given: UpstreamCa(given.chain, (*given.roots, b"\x30" * 200_000))},
}


WORDS = {
    "another key": "for another key",
    "a weak key": "RSA keys have 2048",
    "no CA": "must be a CA",
    "no keyCertSign": "keyCertSign",
    "no key usage": "keyCertSign",
    "another trust domain": "one URI SAN",
    "an ID with a path": "one URI SAN",
    "two IDs": "one URI SAN",
    "no ID": "one URI SAN",
    "no key identifier": "needs a subject key identifier",
    "no subject": "has no subject",
    "client certificates only": "extendedKeyUsage",
    "expired": "a certificate expired",
    "not valid yet": "valid only from",
    "about to end": "less than 30 s",
    "outlives its issuer": "ends after the one",
    "a wrong signature": "a signature in the chain is wrong",
    "no path to a root": "no authority of",
    "garbage": "x509_ca_chain: is not a readable",
    "garbage for a root": "upstream_x509_roots: is not a readable",
    "a certificate too many": "without other certificates",
    "the root in the chain": "without other certificates",
    "too much": "more than 131072 bytes",
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_answer_is_refused_and_nothing_changes(nested: Nested, case: str) -> None:
    """S37: each fault, one at a time. The one in force signs on, and a good answer is taken afterwards (R11)."""
    await nested.start()
    before, bundle = nested.active, nested.bundle
    for name, value in BAD[case].items():
        setattr(nested.upstream, name, value)
    with pytest.raises(Unavailable, match="upstream scripted: ") as caught:
        await nested.authorities.prepare("x509", "test")
    assert WORDS[case] in caught.value.public
    assert (nested.active, nested.slots.prepared, nested.bundle) == (before, None, bundle)
    nested.issue()
    nested.upstream.over, nested.upstream.spoil = {}, lambda given: given
    assert (await nested.rotated()).anchor_id == before.anchor_id
    nested.issue()


async def test_a_path_length_above_that_allows_no_ca_is_refused() -> None:
    """RFC 5280 section 4.2.1.9."""
    nested = Nested(root=ca("root", path_length=0))
    with pytest.raises(Unavailable, match="path length"):
        await nested.start()


async def test_without_an_authority_in_force_the_start_says_what_it_waits_for(nested: Nested) -> None:
    nested.upstream.trouble = Unavailable("the vault is sealed")
    with pytest.raises(Unavailable, match="the vault is sealed"):
        await nested.start()
    assert nested.database.authorities == {}
    nested.upstream.trouble = None
    await nested.start()
    nested.issue()


async def test_with_an_authority_in_force_the_upstream_may_be_away_for_its_whole_life(nested: Nested) -> None:
    """R11: the server starts and signs until its CA ends, asks ever less often, says so, and recovers by itself."""
    await nested.start()
    nested.clock.advance(13 * HOUR)
    nested.upstream.trouble = Unavailable("away")
    await nested.start()
    assert nested.authorities.last_error is not None
    asked: list[float] = []
    real = nested.upstream.mint_x509_ca

    async def counted(csr: bytes, ttl: int) -> UpstreamCa:
        asked.append(nested.clock.monotonic())
        return await real(csr, ttl)

    nested.upstream.mint_x509_ca = counted  # type: ignore[method-assign]  # looked at from outside
    for _ in range(6 * 120):  # two hours
        nested.clock.advance(10)
        await nested.authorities.tick()
        nested.issue()
        assert "away" in nested.authorities.last_error.public
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert pauses == sorted(pauses)
    assert MAX_PAUSE_SECONDS <= pauses[-1] <= MAX_PAUSE_SECONDS + 10
    assert len(asked) < 40
    nested.upstream.trouble = None
    nested.clock.advance(MAX_PAUSE_SECONDS)
    await nested.authorities.tick()
    assert nested.authorities.last_error is None
    assert nested.slots.prepared is not None


async def test_an_upstream_that_hangs_is_given_up_and_signing_goes_on(
    nested: Nested, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nested.start()
    monkeypatch.setattr("identity_server.services.upstream_lines.MINT_SECONDS", 0.05)
    assert MINT_SECONDS > 1
    nested.upstream.hangs = True
    with pytest.raises(Unavailable, match="signed no CA certificate within"):
        await nested.authorities.prepare("x509", "test")
    nested.issue()


async def test_a_ca_that_would_gain_nothing_is_not_taken(nested: Nested) -> None:
    """With the upstream's own end near, each new CA would end when it does: rotating over and over helps nobody."""
    nested = Nested(root=ca("root", days=1))
    await nested.start()
    assert nested.active.not_after == int(nested.root.certificate.not_valid_after_utc.timestamp())
    nested.clock.advance(13 * HOUR)
    await nested.authorities.tick()
    assert nested.authorities.last_error is not None
    assert "renew that" in nested.authorities.last_error.public
    assert nested.slots.prepared is None
    nested.issue()
    nested.upstream.issuer = ca("new", now=nested.clock.now())
    nested.clock.advance(60)
    await nested.authorities.tick()
    assert nested.slots.prepared is not None


async def test_a_ca_below_a_known_root_signs_at_once_below_a_new_one_when_it_is_known(nested: Nested) -> None:
    """A15: what relying parties have to learn is the root."""
    await nested.start()
    nested.clock.advance(60)
    began = nested.clock.monotonic()
    await nested.rotated()
    assert nested.clock.monotonic() == began
    nested.upstream.issuer = ca("new")
    await nested.rotated()
    assert nested.clock.monotonic() - began >= 10


async def test_an_upstream_cannot_take_the_name_of_another_authority(nested: Nested) -> None:
    """A key identifier of its choice may not replace somebody's row in the journal."""
    await nested.start()
    other = Nested(nested.database, nested.clock, "s2", nested.root)
    other.upstream.over = {
        "key_ids": False,
        "extensions": (
            (x509.SubjectKeyIdentifier(bytes.fromhex(nested.active.authority_id)), False),
            (x509.AuthorityKeyIdentifier(bytes.fromhex(nested.active.anchor_id), None, None), False),
        ),
    }
    with pytest.raises(Exception, match="names another one already"):
        await other.start()
    nested.issue()


async def test_new_roots_and_keys_of_the_upstream_join_our_bundle(nested: Nested) -> None:
    """Spire_features 13.1: followed as they come; the same view again changes nothing."""
    await nested.start()
    new = ca("new")
    far = JwtAuthority("far", spki_der(generate(KeyKind.EC_P256).public_key()), 2**33)
    nested.upstream.keys["far"] = far
    nested.upstream.show(nested.root, new)
    await nested.follow()
    assert nested.bundle.x509_roots == (nested.root.der, new.der)
    assert nested.bundle.jwt_authorities == (far,)
    assert nested.bundle.sequence == 2, "one change"
    commands = nested.store.commands
    await nested.follow()
    assert nested.store.commands == commands
    nested.upstream.keys.clear()
    nested.upstream.show(new)
    await nested.follow()
    assert len(nested.bundle.x509_authorities) == 2, "what is only withdrawn stays until it expires"
    assert nested.bundle.jwt_authorities == (far,)


async def test_a_key_id_that_stands_for_another_key_is_left_alone(nested: Nested) -> None:
    """Nobody's tokens are handed to the upstream by a clash of names; the rest is followed."""
    await nested.start()
    keys = [JwtAuthority("k", spki_der(generate(KeyKind.EC_P256).public_key()), 2**33) for _ in range(2)]
    nested.database.bundles[TD] = nested.bundle.with_jwt_authority(keys[0])
    nested.store.reload()
    nested.upstream.keys["k"] = keys[1]
    new = ca("new")
    nested.upstream.show(nested.root, new)
    await nested.follow()
    assert nested.bundle.jwt_authorities == (keys[0],)
    assert new.der in nested.bundle.x509_roots


async def test_a_root_tainted_upstream_is_left_before_it_is_tainted_here(nested: Nested) -> None:
    """Spire_features 20: our own authority first, so that whoever rotates gets something better; then everyone."""
    await nested.start()
    new = ca("new")
    nested.upstream.show(nested.root, new, tainted=(nested.root,))
    with pytest.raises(Unavailable, match="still signs below a root that it has tainted"):
        await nested.follow()
    assert not any(one.tainted for one in nested.bundle.x509_authorities)
    nested.issue()
    nested.upstream.issuer = new
    await nested.follow()
    assert nested.active.anchor_id == ids(new)[0]
    assert [(one.key_id, one.tainted) for one in nested.bundle.x509_authorities] == [
        (ids(nested.root)[0], True),
        (ids(new)[0], False),
    ]
    nested.issue()
    nested.upstream.show(new)
    await nested.follow()
    assert nested.bundle.x509_roots == (new.der,), "tainted and withdrawn: revoked"


async def test_what_is_prepared_below_a_tainted_root_is_replaced(nested: Nested) -> None:
    """It would sign next, and hold up the taint until then."""
    await nested.start()
    bad = nested.upstream.issuer = ca("bad")
    await nested.authorities.prepare("x509", "test")
    nested.upstream.issuer = nested.root
    nested.upstream.show(nested.root, bad, tainted=(bad,))
    active = nested.active
    await nested.follow()
    assert (nested.active, nested.slots.prepared.anchor_id) == (active, active.anchor_id)
    assert [one.tainted for one in nested.bundle.x509_authorities] == [False, True]


async def test_a_root_that_another_server_signs_below_is_tainted_after_it_left(nested: Nested) -> None:
    """A15: no server is cut off by another's haste."""
    await nested.start()
    second = await Nested(nested.database, nested.clock, "s2", nested.root).start()
    new = ca("new")
    for one in (nested, second):
        one.upstream.issuer = new
        one.upstream.show(nested.root, new, tainted=(nested.root,))
        one.store.reload()
    with pytest.raises(Unavailable, match="a server still signs below"):
        await nested.follow()
    second.store.reload()
    second.issue()
    await second.follow()
    assert [one.tainted for one in nested.bundle.x509_authorities] == [True, False]
    nested.store.reload()
    nested.issue()
    await nested.follow()


async def test_a_command_does_not_taint_what_another_server_signs_below(nested: Nested) -> None:
    await nested.start()
    second = await Nested(nested.database, nested.clock, "s2", nested.root).start()
    nested.store.reload()
    nested.upstream.issuer = ca("new")
    await nested.rotated()
    nested.upstream.show(nested.upstream.issuer)
    old = ids(nested.root)[0]
    with pytest.raises(InvalidRequest, match=r"server s2 still signs below it"):
        await nested.above.taint(ADMIN, old)
    second.store.reload()
    second.upstream.issuer = nested.upstream.issuer
    await second.rotated()
    assert await nested.above.taint(ADMIN, old) == old
    assert await nested.above.taint(ADMIN, old) == old, "repeating it changes nothing"
    assert await nested.above.revoke(ADMIN, old) == old
    assert nested.bundle.x509_roots == (nested.upstream.issuer.der,)
    assert len(nested.database.authorities) == 2, "what was below it is gone from every journal"
    for one in (nested, second):
        one.store.reload()
        one.issue()


async def test_nothing_is_prepared_below_a_root_that_is_tainted_here(nested: Nested) -> None:
    await nested.start()
    first = nested.upstream.issuer
    nested.upstream.issuer = ca("new")
    await nested.rotated()
    nested.upstream.show(nested.upstream.issuer)
    await nested.above.taint(ADMIN, ids(first)[0])
    nested.upstream.issuer = first
    with pytest.raises(Unavailable, match="which is tainted here"):
        await nested.authorities.prepare("x509", "test")
    nested.issue()


async def test_a_lost_history_gets_root_and_chain_back(nested: Nested) -> None:
    """R27, R50: a restored backup from before the new root: it is published again, with its taint, before anything is signed."""
    await nested.start()
    backup = nested.database.copy()
    old = nested.root
    nested.upstream.issuer = ca("new")
    await nested.rotated()
    nested.upstream.show(nested.upstream.issuer)
    await nested.above.taint(ADMIN, ids(old)[0])
    known = nested.store.state.value.authorities
    before = nested.bundle
    nested.database.authorities, nested.database.bundles = backup.authorities, backup.bundles
    nested.store.reload()
    with pytest.raises(Unavailable):
        nested.issue()
    lost = LostHistory(store=nested.store, clock=nested.clock, audit=Silent(), trust_domain=TD, server_id="s1")
    position = Position(1, 1, 1)
    change = HistoryChange("a backup was restored", position, position, proven=True, authorities=known, bundle=before)
    assert await lost.publish_again(change) == (nested.active.authority_id,)
    assert {(one.key_id, one.tainted) for one in nested.bundle.x509_authorities} == {
        (ids(old)[0], True),
        (ids(nested.upstream.issuer)[0], False),
    }
    assert nested.bundle == before
    await nested.authorities.tick()
    nested.issue()


async def test_our_jwt_key_is_known_upstream_before_it_signs() -> None:
    """Spire_features 13.1: published first; an upstream that publishes none leaves the key to our bundle."""
    for publishes in (True, False):
        nested = Nested(jwt=True)
        nested.upstream.publishes = publishes
        await nested.start()
        (key,) = nested.bundle.jwt_authorities
        assert set(nested.upstream.keys) == ({key.key_id} if publishes else set())
        with pytest.raises(PreconditionFailed, match="still publishes"):
            await nested.above.revoke(ADMIN, ids(nested.root)[0])


async def test_a_downstream_servers_key_goes_up_and_all_keys_come_back(nested: Nested) -> None:
    """Spire_wire 5.2: forwarded where the upstream takes keys; refused while it is away; a clash of names is a conflict."""
    await nested.start()
    nested.upstream.publishes = True
    nested.upstream.keys["other"] = JwtAuthority("other", spki_der(generate(KeyKind.EC_P256).public_key()), 2**33)
    bundles = TrustBundles(store=nested.store, audit=Silent(), trust_domain=TD, upstream=nested.upstream)
    far = JwtAuthority("far", spki_der(generate(KeyKind.EC_P256).public_key()), 2**33)
    assert {one.key_id for one in await bundles.publish_jwt_authority(ADMIN, far)} == {"far", "other"}
    assert nested.upstream.keys["far"] == far
    nested.upstream.trouble = Unavailable("away")
    with pytest.raises(Unavailable, match="away"):
        await bundles.publish_jwt_authority(ADMIN, JwtAuthority("late", far.public_key, 2**33))
    nested.upstream.trouble = None
    nested.upstream.publishes = False
    with pytest.raises(Conflict):
        await bundles.publish_jwt_authority(
            ADMIN, JwtAuthority("other", spki_der(generate(KeyKind.EC_P256).public_key()), 2**33)
        )
