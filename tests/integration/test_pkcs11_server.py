"""A server whose authorities' keys are in a SoftHSM2 token: faults of the token as callers and probes see them."""

from __future__ import annotations

import grpc
import pytest

from identity_server.keys import token_link
from spiffe_core.errors import CorruptState
from tests.doubles.live_server import entry, live_server, sign, wanted
from tests.softhsm import soft_token


@pytest.fixture
def token(tmp_path, monkeypatch):
    monkeypatch.setattr(token_link, "RETRY_SECONDS", 0.0)
    return soft_token(tmp_path / "token")


def on(token, **over):
    return {"ca": {"key_manager": "pkcs11", "pkcs11": token.settings(**over)}, "jwt": {"key_type": "ec-p384"}}


def part(live, name):
    return next(one for one in live.server.monitor.report().parts if one.name == name)


async def issue(live):
    """The status of one X.509-SVID for a workload of a joined agent."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry(parent=agent.path))
    (result,) = await sign(agent, wanted(entry_id))
    return agent, entry_id, result.status


async def test_a_token_that_is_pulled_out_means_unavailable_and_not_ready_until_it_is_back(token):
    """Issuing answers Unavailable, readiness and health name the token; all recover without a restart."""
    async with live_server(**on(token)) as live:
        agent, entry_id, status = await issue(live)
        assert status.code == grpc.StatusCode.OK.value[0]
        assert live.server.serving
        token.pull_out()
        (result,) = await sign(agent, wanted(entry_id))
        assert result.status.code == grpc.StatusCode.UNAVAILABLE.value[0]
        await live.server.authorities.tick()
        assert not live.server.serving
        assert token.label in part(live, "server.ca").trouble
        token.put_back()
        await live.server.authorities.tick()
        assert live.server.serving
        (result,) = await sign(agent, wanted(entry_id))
        assert result.status.code == grpc.StatusCode.OK.value[0]


async def test_one_bad_moment_of_the_token_spoils_no_other_item_of_a_batch(token):
    """S27 meets the token: every item of a batch has a status of its own while the token is away."""
    async with live_server(**on(token)) as live:
        agent, entry_id, _ = await issue(live)
        token.pull_out()
        results = await sign(agent, *[wanted(entry_id) for _ in range(5)])
        assert {result.status.code for result in results} == {grpc.StatusCode.UNAVAILABLE.value[0]}
        token.put_back()
        results = await sign(agent, *[wanted(entry_id) for _ in range(5)])
        assert {result.status.code for result in results} == {0}


async def test_a_key_deleted_behind_our_back_ends_issuing_with_its_name_and_a_restart_says_what_to_do(token, tmp_path):
    """The running server does not fall back to another key; a restart refuses instead of making a new authority (R8)."""
    async with live_server(tmp_path / "s", **on(token)) as live:
        agent, entry_id, _ = await issue(live)
        slot = live.server.authorities.active.key_slot
        token.tool("--delete-object", "--type", "privkey", "--label", f"muniment-{slot}")
        (result,) = await sign(agent, wanted(entry_id))
        assert result.status.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert f"lost the key muniment-{slot}" in part(live, "server.ca").trouble
    with pytest.raises(CorruptState, match=f"PKCS#11 token '{token.label}'.*slot {slot}.*--reset-keys"):
        async with live_server(tmp_path / "s", **on(token)):
            pass


async def test_two_servers_share_a_token_by_prefix_and_neither_sees_the_others_faults(token, tmp_path):
    async with live_server(tmp_path / "a", **on(token, key_label_prefix="a-")) as first:
        async with live_server(tmp_path / "b", **on(token, key_label_prefix="b-")) as second:
            for live in (first, second, first):
                _, _, status = await issue(live)
                assert status.code == 0
            ids = {live.server.authorities.active.authority_id for live in (first, second)}
            assert len(ids) == 2
