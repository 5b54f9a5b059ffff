"""S1, S2, continued: every method by administrators and downstream servers that once were good, on open connections.

Their handshake was long ago: the certificate, the authority behind it and the entry are looked at again for each call.
"""

from __future__ import annotations

import logging

import pytest

from identity_server.domain.access import ACCESS, CallerKind
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from tests.doubles.live_server import live_server
from tests.integration.test_server_access import METHODS, answer, workload

KINDS = {"admin": CallerKind.ADMIN, "downstream": CallerKind.DOWNSTREAM}


@pytest.fixture
async def live():
    level = logging.getLogger().level  # administrators may reset the server's log, and do
    async with live_server() as server:
        yield server
    logging.getLogger().setLevel(level)


async def expired(live, stubs, _flag):
    """The certificate ran out."""
    live.clock.move(stubs.own.expires_at - live.clock.now().timestamp() + 1)


async def unanchored(live, stubs, _flag):
    """The authority behind it was taken out of the bundle."""

    def forget(uow):
        bundle = uow.bundles.get(live.state.trust_domain)
        for authority in bundle.x509_authorities:
            bundle = bundle.without_x509_authority(authority.key_id)
        uow.bundles.put(bundle)

    await live.server.store.execute(forget)


async def deleted(live, stubs, _flag):
    """Its entry is gone."""
    (mine,) = [one for one in live.state.entries.values() if one.path == stubs.path]
    await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[mine.id]))


async def demoted(live, stubs, flag):
    """Its entry stands, without the right."""
    (mine,) = [one for one in live.state.entries.values() if one.path == stubs.path]
    change = entry_pb2.BatchUpdateEntryRequest(entries=[{"id": mine.id}], input_mask={flag: True})
    assert (await live.entry.BatchUpdateEntry(change)).results[0].status.code == 0


@pytest.mark.parametrize("flag", KINDS)
@pytest.mark.parametrize("loses", [expired, unanchored, deleted, demoted], ids=lambda loses: loses.__name__)
async def test_who_was_an_operator_is_one_no_more(live, flag, loses):
    """S1, S2: not one method that is not everybody's, from the very next call on; nobody else loses anything."""
    stubs = await workload(live, **{flag: True})
    channel = stubs.dialer.channel()
    mine = [method for method in METHODS if KINDS[flag] in ACCESS[method]]
    assert mine
    assert "PERMISSION_DENIED" not in {(await answer(channel, method))[0] for method in mine}
    await loses(live, stubs, flag)
    refused = "UNAUTHENTICATED" if loses in {expired, unanchored} else "PERMISSION_DENIED"
    for method in METHODS:
        code, text = await answer(channel, method)
        if CallerKind.ANYONE in ACCESS[method]:
            assert code in {"OK", "INVALID_ARGUMENT"}, (method, code, text)
        else:
            assert code in ({refused} if method in mine else {refused, "PERMISSION_DENIED"}), (method, code, text)
    assert (await answer(live.channel, "/spire.api.server.entry.v1.Entry/CountEntries"))[0] == "OK"
