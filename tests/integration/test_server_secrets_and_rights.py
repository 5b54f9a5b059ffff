"""What is kept of a secret, and what an administrator can do to himself (S63, S66, S78); a key's change in time (R48)."""

from __future__ import annotations

import pytest

from spiffe_core.crypto.jose import read_compact
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import VerificationFailed
from spiffe_core.jwt_verify import verify_jwt_svid
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from tests.doubles.live_server import entry, live_server, sign, spiffe_id, wanted


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


async def test_a_token_is_nowhere_in_the_database_before_it_is_used(live):
    """S66: it is looked up by its hash, so no comparison, however timed, tells how much of a guess was right."""
    tokens = [await live.token() for _ in range(20)]
    private = live.server.settings.data_dir
    stored = b"".join(path.read_bytes() for path in private.rglob("*") if path.is_file())
    assert len(stored) > 4096
    for token in tokens:
        assert token.encode() not in stored
        assert token[:-1].encode() not in stored
        assert token.replace("-", "").encode() not in stored


META = [
    "'; DROP TABLE entry; --", '"x" OR 1=1', "%_\\%", "a\\'b", ":name ?1 %s {0}", "\x1b[31m\u2028", "\u202egnp.exe", "x;y",
]  # fmt: skip


@pytest.mark.parametrize("text", META)
async def test_meta_characters_go_through_every_text_field_of_an_entry_and_come_back(live, text):
    """S63: verbatim, found by a filter with the very text and by no other."""
    asked = entry(hint=text, selectors=(("unix", text), ("k8s", f"label:{text}")))
    (entry_id,) = await live.entries(asked)
    await live.entries(entry("/other", hint="other"))
    by_selectors = {"selectors": asked["selectors"], "match": "MATCH_EXACT"}
    for found in (
        [await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=entry_id))],
        (await live.entry.ListEntries(entry_pb2.ListEntriesRequest(filter={"by_hint": {"value": text}}))).entries,
        (await live.entry.ListEntries(entry_pb2.ListEntriesRequest(filter={"by_selectors": by_selectors}))).entries,
    ):
        (one,) = found
        assert (one.hint, {part.value for part in one.selectors}) == (text, {text, f"label:{text}"})
    nobody = entry_pb2.CountEntriesRequest(filter={"by_hint": {"value": text + "'"}})
    assert (await live.entry.CountEntries(nobody)).count == 0


async def test_an_administrator_may_ban_the_agent_that_serves_him(live):
    """S78: done at once; he keeps what his certificate is good for, and the local socket is never locked."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/admin", agent.path, admin=True))
    key = generate(KeyKind.EC_P256)
    (result,) = await sign(agent, wanted(entry_id, key))
    admin = await live.agent_with(result.svid, key)
    await admin.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)), timeout=10)
    assert live.state.agents[agent.path].banned
    assert (await admin.entry.CountEntries(entry_pb2.CountEntriesRequest(), timeout=10)).count >= 1
    await admin.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[entry_id]), timeout=10)
    count = await live.entry.CountEntries(entry_pb2.CountEntriesRequest(), timeout=10)
    assert entry_id not in live.state.entries
    assert count.count == len(live.state.entries)
    await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)), timeout=10)


async def mint(live):
    request = svid_pb2.MintJWTSVIDRequest(id=spiffe_id("/ci"), audience=["a"], ttl=300)
    return (await live.svid.MintJWTSVID(request, timeout=10)).svid


def verified(svid, bundles, now):
    return verify_jwt_svid(svid.token, bundles, audience=["a"], now=now)


async def test_tokens_of_both_sides_of_a_key_change_verify_by_bundles_of_both_sides(live):
    """R48: the new key is published before it signs, the old one stays until every token of its has expired."""
    before, old = await mint(live), live.state.bundles
    await live.local.PrepareJWTAuthority(localauthority_pb2.PrepareJWTAuthorityRequest(), timeout=10)
    between = live.state.bundles
    state = await live.local.GetJWTAuthorityState(localauthority_pb2.GetJWTAuthorityStateRequest(), timeout=10)
    prepared = state.prepared.authority_id
    last = await mint(live)
    assert read_compact(last.token).header["kid"] == read_compact(before.token).header["kid"], "published first"
    live.clock.move(11)  # what polling agents are given to hear of it (A15)
    await live.local.ActivateJWTAuthority(
        localauthority_pb2.ActivateJWTAuthorityRequest(authority_id=prepared), timeout=10
    )
    after, first = live.state.bundles, await mint(live)
    assert read_compact(first.token).header["kid"] == prepared
    now = live.clock.now()
    for svid in (before, last, first):
        for bundles in (between, after):
            assert verified(svid, bundles.get, now).spiffe_id.path == "/ci"
    with pytest.raises(VerificationFailed):
        verified(first, old.get, now)  # whoever has not refreshed since the key was prepared
    assert verified(last, after.get, now).expires_at > now.timestamp() + 200, "it outlives the change"


async def key_in_use(live):
    return read_compact((await mint(live)).token).header["kid"]


async def test_by_the_schedule_a_key_is_known_for_longer_than_anybody_waits_to_look_again(live):
    """R48, JWT-32: whoever asks for the bundle at each refresh hint has the next key before the first token by it."""
    first, tokens, published, used = await key_in_use(live), [], {}, {}
    for _ in range(4 * 24):
        live.clock.move(900)
        await live.server.authorities.tick()
        now, bundle = live.clock.now().timestamp(), live.state.bundles.own
        for authority in bundle.jwt_authorities:
            published.setdefault(authority.key_id, now)
        token = await mint(live)
        used.setdefault(read_compact(token.token).header["kid"], now)
        tokens = [one for one in (*tokens, token) if one.expires_at > now]
        for one in tokens:
            assert verified(one, live.state.bundles.get, live.clock.now()), "until its exp, whatever signs by then"
    later = [key for key in used if key != first]
    assert later, "the day saw a rotation"
    for key in later:
        assert used[key] - published[key] >= 3 * 3600 > bundle.refresh_hint
