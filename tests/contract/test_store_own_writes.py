"""What a server keeps in memory of its own writes is what the database keeps, on every database (B9, eventlog 2.3)."""

import asyncio
from dataclasses import replace

import pytest

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.state import State
from identity_server.store import follower
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import TrustDomain
from tests.builders import TD, make_bundle, make_entry, sid
from tests.databases import SHARED_KINDS, encode, running_store, url_of
from tests.doubles.held_follower import seen

MANY = 40
"""More rows than a database that streams them in (COPY) takes one by one."""
OTHER_DOMAIN = TrustDomain("other.test")


def entries(prefix, count=MANY):
    """Every field, its extremes among them."""
    return [
        replace(
            make_entry(id=f"{prefix}-{number}", spiffe_id=f"/{prefix}/{number}"),
            selectors=frozenset((Selector("unix", f"uid:{number}"), Selector("k8s", "\u00e9 \U0001f98a \\ \t'\x00"))),
            x509_svid_ttl=number % 2 * (2**31 - 1),
            federates_with=(OTHER_DOMAIN,) if number % 3 else (),
            admin=number % 2 == 0,
            downstream=number % 2 == 1,
            expires_at=2**63 - 1 if number % 2 else 0,
            dns_names=("a.test", f"{number}.test"),
            revision_number=2**63 - 1 if number % 5 == 0 else number,
            hint="\u00e9\n\\N\t",
            created_at=number,
            jwt_svid_include_jti=number % 2 == 0,
        )
        for number in range(count)
    ]


async def memory_is_the_tables(store):
    stored = await store.read(lambda uow: (list(uow.entries.all()), list(uow.agents.all())))
    state: State = store.state.value
    assert {entry_id: record.wire for entry_id, record in state.entries.items()} == {
        one.id: encode(one) for one in stored[0]
    }
    assert dict(state.agents) == {one.spiffe_id.path: one for one in stored[1]}


async def test_what_was_written_is_known_as_it_is_stored(store, monkeypatch):
    """Many at once, one, changed, deleted; nothing of it was read."""
    monkeypatch.setattr(follower, "events_since", None)
    await store.execute(lambda uow: uow.bundles.put(replace(make_bundle(), trust_domain=OTHER_DOMAIN)))
    wanted = entries("many")
    await store.execute(lambda uow: uow.entries.add(wanted))
    await memory_is_the_tables(store)
    assert await store.read(lambda uow: uow.entries.many([one.id for one in wanted])) == {one.id: one for one in wanted}
    agent = AttestedAgent(sid("/spire/agent/x"), "join_token", "1", 9, selectors=frozenset((Selector("a", "b"),)))
    await store.execute(lambda uow: (uow.entries.add(entries("one", 1)), uow.agents.put(agent)))
    await store.execute(lambda uow: uow.entries.replace([replace(wanted[3], hint="new"), replace(wanted[4], hint="")]))
    await store.execute(lambda uow: (uow.entries.remove([wanted[3].id, "nobody"]), uow.agents.remove("/nobody")))
    await memory_is_the_tables(store)
    await store.execute(lambda uow: uow.agents.remove(agent.spiffe_id.path))
    await memory_is_the_tables(store)
    assert store.trouble == ""


@pytest.mark.parametrize("kind", SHARED_KINDS)
async def test_two_servers_that_write_in_turns_and_at_once_know_everything(kind, tmp_path):
    """R35: neither takes its own writes for all there is."""
    url = url_of(kind, tmp_path)
    async with running_store(url, server_id="one") as one, running_store(url, server_id="two") as two:

        async def write(store, name, count):
            for number in range(count):
                added = make_entry(id=f"{name}-{number}", spiffe_id=f"/{name}/{number}")
                await store.execute(lambda uow, added=added: uow.entries.add([added]))
                if number % 3 == 2:
                    await store.execute(lambda uow, gone=f"{name}-{number - 1}": uow.entries.remove([gone]))

        for turn in range(4):
            await write(one if turn % 2 else two, f"turn{turn}", 3)
        await asyncio.gather(
            *(write(store, f"{store is one}{caller}", 12) for store in (one, two) for caller in range(3))
        )
        last = (await one.read(lambda uow: uow.log.head())).position
        for store in (one, two):
            await seen(store, lambda state: state.position == last)
            await memory_is_the_tables(store)
            assert store.state.value.trust_domain == TD
