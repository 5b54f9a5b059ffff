"""The signing authorities of one server on a real store, and what must be true of what is stored."""

from __future__ import annotations

import os

from identity_server.domain.audit import AuditEvent
from identity_server.domain.authority import Status
from identity_server.domain.published import published_ids
from identity_server.keys import MemoryKeys
from identity_server.services.authorities import Authorities, CaSettings
from identity_server.services.authority_lines import belongs
from tests.builders import TD


class Silent:
    def record(self, *events: AuditEvent) -> None:
        del events


def authorities_of(store, server, clock, keys=None):
    settings = CaSettings(trust_domain=TD, server_id=server)
    return Authorities(store, keys or MemoryKeys(), clock, Silent(), settings, os.urandom)


async def stored(store, server):
    """Journal of a server and ids in the bundle, as the database has them."""

    def query(uow):
        bundle = uow.bundles.get(TD)
        return uow.authorities.of_server(server), published_ids(bundle, "x509") if bundle else frozenset()

    return await store.read(query)


def consistent(journal, published, keys):
    """What is in force is published, and its key is the one in the slot."""
    for one in journal:
        if one.status is not Status.OLD:
            assert one.authority_id in published
            assert belongs(one, keys.signer(one.key_slot)), f"the key of the {one.status.value} authority is gone"
