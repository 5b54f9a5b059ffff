"""S63: texts of strangers come back from every database as they went in, in each place that takes one.

Entries' and agents' texts: test_store.py. Here: what a filter asks for, names of keys, addresses, orders, settings.
"""

from dataclasses import replace

import pytest

from identity_server.domain.federation import EndpointProfile, FederationRelationship
from identity_server.domain.listing import AgentFilter, EntryFilter
from identity_server.domain.orders import Errand, ErrandStatus, Order
from identity_server.domain.server_settings import IssuingSettings, ServerRecord
from identity_server.store.sql_store import SqlStore
from spiffe_core.bundle import JwtAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from tests.builders import OTHER_TD, TD, make_bundle, make_entry
from tests.databases import SERVER
from tests.doubles.state_maker import attested

TEXTS = (
    "'; DROP TABLE bundle; --",
    '"x" OR 1=1 /*',
    "a\\'b\\\\",
    "100% _any_ [a-z]",
    ":name ?1 %s %(x)s {0} $1",
    "nul\x00inside",
    "line\nfeed\r\ttab\x1b[31m\u2028",
    "\u00e9 \U0001f98a \ufb00 \u0130 \u00df a\u0301",
    " around ",
)
NUMBERED = list(enumerate(TEXTS))


async def test_keys_of_bundles_have_any_name(store: SqlStore) -> None:
    """S63: a kid is another trust domain's choice; one that differs in case or in its accents' form is another key."""
    spki = spki_der(generate(KeyKind.EC_P256).public_key())
    names = (*TEXTS, "kid", "KID", "\u00e1", "a\u0301")
    bundle = make_bundle(trust_domain=OTHER_TD, jwt_authorities=tuple(JwtAuthority(name, spki) for name in names))
    await store.execute(lambda uow: (uow.bundles.put(make_bundle()), uow.bundles.put(bundle)))
    assert await store.read(lambda uow: uow.bundles.get(OTHER_TD)) == bundle
    assert store.state.value.bundles is not None
    assert store.state.value.bundles.get(OTHER_TD) == bundle
    fewer = bundle.without_jwt_authority("KID")
    await store.execute(lambda uow: uow.bundles.put(fewer))
    found = await store.read(lambda uow: uow.bundles.get(OTHER_TD))
    assert {one.key_id for one in found.jwt_authorities} == set(names) - {"KID"}


async def test_addresses_orders_and_settings_have_any_words(store: SqlStore) -> None:
    """S63: what an administrator, another server or a failure said."""
    url = "https://fed.test/'%22;--%25_?a=:x&b=%s#\u00e9"
    relationship = FederationRelationship(OTHER_TD, url, EndpointProfile.HTTPS_WEB)
    await store.execute(lambda uow: uow.relationships.put(relationship))
    assert await store.read(lambda uow: uow.relationships.get(OTHER_TD)) == relationship
    for number, text in NUMBERED:
        order = Order(f"o{number}", "jwt", "destroy", text, 1_700_000_000 + number, text[:64], b"\0" * 32)
        errand = Errand(SERVER, ErrandStatus.FAILED, text, 1_700_000_100)
        await store.execute(lambda uow, order=order: uow.orders.add(order, (SERVER,)))
        await store.execute(lambda uow, order=order, errand=errand: uow.orders.report(order.order_id, errand))
        progress = await store.read(lambda uow, order=order: uow.orders.get(order.order_id))
        assert (progress.order, progress.errands) == (order, (errand,))
    record = ServerRecord(SERVER, IssuingSettings.of({f"x{number}": text for number, text in NUMBERED}), 1_700_000_000)
    await store.execute(lambda uow: uow.servers.put(record))
    assert await store.read(lambda uow: uow.servers.all()) == (record,)


@pytest.mark.parametrize("place", ["hint", "attestation_type"])
async def test_a_filter_finds_its_own_text_and_no_pattern(store: SqlStore, place: str) -> None:
    """S63: `%` and `_` are no wildcards, a quotation mark ends nothing, and no collation calls two texts one."""
    entries = [make_entry(id=f"e{number}", spiffe_id=f"/{number}", hint=text) for number, text in NUMBERED]
    agents = [replace(attested(), attestation_type=text) for text in TEXTS]
    agents = [
        replace(one, spiffe_id=type(one.spiffe_id)(TD, f"/spire/agent/x/{number}")) for number, one in enumerate(agents)
    ]
    await store.execute(lambda uow: (uow.entries.add(entries), [uow.agents.put(one) for one in agents]))
    for number, text in NUMBERED:
        for asked, found in ((text, 1), (text.strip() + "x", 0), ("%", 0), (text.upper() + "'", 0)):
            if place == "hint":
                page = await store.read(lambda uow, asked=asked: uow.entries.page(EntryFilter(hint=asked)).items)
                assert [one.id for one in page] == [f"e{number}"] * found, (asked, found)
            else:
                page = await store.read(
                    lambda uow, asked=asked: uow.agents.page(AgentFilter(attestation_type=asked)).items
                )
                assert [one.attestation_type for one in page] == [text] * found, (asked, found)
