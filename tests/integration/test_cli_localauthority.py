"""`identity-server localauthority` against a real server: text and JSON as SPIRE's, orders, and what to do next (A13, A15)."""

import asyncio
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from identity_server import daemon
from identity_server.cli import main
from tests.doubles.canned_daemon import leave_code
from tests.doubles.live_server import live_server

KINDS = {"x509": "X.509", "jwt": "JWT", "wit": "WIT"}


@pytest.fixture
async def live(monkeypatch):
    async with live_server(wit={"enabled": True}) as server:
        monkeypatch.setenv("SPIRE_SERVER_PRIVATE_SOCKET", str(server.server.settings.socket_path))
        loop = asyncio.ensure_future(daemon.keep_errands(server.server))
        yield server
        loop.cancel()


async def run(capsys, *words):
    """Exit code and what was printed, on either stream."""
    code = await asyncio.to_thread(leave_code, main, "localauthority", *words)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


async def document(capsys, *words):
    code, text = await run(capsys, *words, "-output", "json")
    assert code == 0, text
    return json.loads(text)


def ends(authority):
    return f"{datetime.fromtimestamp(authority.not_after, UTC):%Y-%m-%d %H:%M:%S +0000 UTC}"


@pytest.mark.parametrize("kind", KINDS)
async def test_the_texts_of_a_rotation(live, capsys, kind):
    """SPIRE's headings and lines; only X.509 authorities have an upstream."""
    words, slots = KINDS[kind], live.server.authorities.slots
    upstream = "  Upstream authority ID: No upstream authority\n" if kind == "x509" else ""

    def block(verb, authority):
        return (
            f"{verb} {words} authority:\n  Authority ID: {authority.authority_id}\n"
            f"  Expires at: {ends(authority)}\n{upstream}"
        )

    first = slots(kind).active
    none = "{0} {1} authority:\n  No {2} {1} authority found\n"
    shown = "\n".join(
        [block("Active", first), none.format("Prepared", words, "prepared"), none.format("Old", words, "old")]
    )
    assert await run(capsys, kind, "show") == (0, shown)
    code, text = await run(capsys, kind, "prepare")
    second = slots(kind).prepared
    assert (code, text) == (0, block("Prepared", second))
    live.clock.move(11)
    assert await run(capsys, kind, "activate", "-authorityID", second.authority_id) == (0, block("Activated", second))
    assert await run(capsys, kind, "taint", "-authorityID", first.authority_id) == (0, block("Tainted", first))
    assert await run(capsys, kind, "revoke", "-authorityID", first.authority_id) == (0, block("Revoked", first))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_json_of_a_rotation(live, capsys, kind):
    """The response message with every field, as SPIRE prints it."""
    first = live.server.authorities.slots(kind).active
    shown = await document(capsys, kind, "show")
    assert shown["active"] == {
        "authority_id": first.authority_id,
        "expires_at": str(first.not_after),
        "upstream_authority_subject_key_id": "",
    }
    second = (await document(capsys, kind, "prepare"))["prepared_authority"]["authority_id"]
    live.clock.move(11)
    for verb, field, authority_id in (
        ("activate", "activated_authority", second),
        ("taint", "tainted_authority", first.authority_id),
        ("revoke", "revoked_authority", first.authority_id),
    ):
        answer = await document(capsys, kind, verb, "-authorityID", authority_id)
        assert answer[field]["authority_id"] == authority_id


async def test_mistakes_are_answered_with_what_to_do(live, capsys):
    active = live.server.authorities.slots("x509").active.authority_id
    for verb in ("activate", "taint", "revoke"):
        code, text = await run(capsys, "x509", verb)
        assert code == 1
        assert "an authority ID is required" in text
        assert "localauthority x509 show" in text
        code, text = await run(capsys, "x509", verb, "-authorityID", active, "--all-servers")
        assert code == 1
        assert "exclude each other" in text
    code, text = await run(capsys, "x509", "taint", "-authorityID", active)
    assert code == 1
    assert "Error: could not taint X.509 authority: unable to taint current local authority\n" in text
    assert "becomes old when another is activated" in text
    code, text = await run(capsys, "x509", "prepare", "--all-servers", "--wait", "2h")
    assert (code, "--wait must be at most" in text) == (1, True)
    code, text = await run(capsys, "give-up-server", "--server-id", "nobody")
    assert (code, "no server has this id" in text) == (1, True)


async def test_orders_to_all_servers(live, capsys):
    """A15: who has done it; exit code 0 only when all have."""
    own = live.server.server_id
    first = live.server.authorities.slots("jwt").active.authority_id
    code, text = await run(capsys, "jwt", "prepare", "--all-servers")
    second = live.server.authorities.slots("jwt").prepared.authority_id
    assert code == 0
    assert re.match(r"Prepare JWT authority, order [0-9a-f-]{36}\n  Ordered at: .* by local \(", text)
    assert f"  Server {own} (this one): done: prepared {second}\n" in text
    live.clock.move(11)
    answer = await document(capsys, "jwt", "activate", "-allServers")
    assert answer["verb"] == "VERB_ACTIVATE"
    assert [one["status"] for one in answer["reports"]] == ["STATUS_DONE"]
    for verb in ("taint", "revoke"):
        assert (await run(capsys, "jwt", verb, "--all-servers"))[0] == 0
    code, text = await run(capsys, "orders")
    assert code == 0
    assert text.startswith(f"Found 5 orders\n\nDestroy JWT authority {first}, order ")
    code, text = await run(capsys, "servers")
    assert text.startswith(f"Found 1 server\n\nServer {own} (this one):\n  X.509 active: ")
    assert f"  JWT active: {second}\n    Expires at: " in text
    listed = await document(capsys, "servers")
    assert {one["server_id"] for one in listed["authorities"]} == {own}


async def test_a_server_that_does_not_answer_in_time_is_named(live, capsys):
    """The order stands; the exit code says that somebody is waited for, and the text what to do."""
    store, row = live.server.store, live.server.authorities.active
    there = replace(row, authority_id="ab" * 20, server_id="far away")
    await store.execute(lambda uow: uow.authorities.put(there))
    code, text = await run(capsys, "x509", "prepare", "--all-servers", "--wait", "1s")
    assert code == 1
    assert "  Server far away: waiting\n" in text
    assert "1 server has not done it yet" in text
    assert "localauthority give-up-server" in text
    code, text = await run(capsys, "give-up-server", "-serverID", "far away")
    assert code == 0
    assert text.startswith(f"Retired 1 authority of server far away\n  X.509: {there.authority_id}\n")
    assert (await run(capsys, "orders"))[1].count("  Server far away: given up\n") == 1
