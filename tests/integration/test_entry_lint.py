"""`entry lint` and the warnings of `entry create` and `update`, by the real commands on a real server (need 30)."""

import asyncio
import json

import grpc
import pytest

from identity_server.cli import main
from identity_server.rpc.services import EXPLAIN
from spiffe_core.wire._gen.muniment.server.explain.v1 import explain_pb2 as pb
from spiffe_core.wire.services import Stub
from tests.doubles.canned_daemon import leave_code
from tests.doubles.live_server import entry, live_server

WEB = ("-spiffeID", "spiffe://example.org/web", "-selector", "unix:uid:1000")


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


@pytest.fixture
def command(live, capsys):
    """Run `identity-server entry`; its exit code and what it printed."""

    async def run(*words):
        socket = str(live.server.settings.socket_path)
        code = await asyncio.to_thread(leave_code, main, "entry", *words, "-socketPath", socket)
        return code, capsys.readouterr()

    return run


def mending(text):
    """The command that the last line tells."""
    return text.rstrip().splitlines()[-1].partition("To mend it: identity-server entry ")[2].split()


async def test_an_entry_with_a_parent_nobody_is_warned_of_and_the_command_that_mends_it_does(live, command):
    """Need 30: the warning names the closest agent; the exit code and standard output stay SPIRE's."""
    agent = await live.join()
    slip = f"spiffe://example.org{agent.path[:-2]}{agent.path[-1]}{agent.path[-2]}x"
    code, said = await command("create", "-parentID", slip, *WEB)
    assert code == 0
    assert said.out.startswith("Entry ID         : ")
    assert "MUN-" not in said.out
    assert said.err.startswith("Warning: MUN-L101: entry ")
    assert f"the closest is spiffe://example.org{agent.path}" in said.err
    code, said = await command(*mending(said.err))
    assert (code, said.err) == (0, "")
    assert (await command("lint"))[0] == 0


async def test_the_command_that_mends_an_entry_changes_nothing_else_of_it(live, command):
    """Need 30: `entry update` replaces an entry whole, so the command names all that the entry has."""
    agent = await live.join()
    kept = ("-x509SVIDTTL", "20", "-jwtSVIDTTL", "30", "-dns", "a.test", "-dns", "b.test", "-hint", "x", "-admin")
    kept = (*kept, "-downstream", "-disableX509SVIDPrefetch", "-jwtSVIDIncludeJTI", "-entryExpiry", "4000000000")
    slip = f"spiffe://example.org{agent.path[:-2]}{agent.path[-1]}{agent.path[-2]}x"
    code, said = await command("create", "-parentID", slip, *WEB, *kept)
    fix = next(line for line in said.err.splitlines() if "-parentID spiffe://" in line)
    before = said.out
    code, said = await command(*mending(fix))
    assert code == 0
    differing = [
        (old.split(":")[0].strip(), new.split(":")[0].strip())
        for old, new in zip(before.splitlines(), said.out.splitlines(), strict=True)
        if old != new
    ]
    assert differing == [("Parent ID", "Parent ID"), ("Revision", "Revision")]


async def test_in_json_standard_output_is_spires_and_the_warnings_are_a_line_of_standard_error(live, command):
    """A13."""
    agent = await live.join()
    code, said = await command("create", "-parentID", "spiffe://example.org/nobody", *WEB, "-output", "json")
    document = json.loads(said.out)
    assert (code, set(document)) == (0, {"results"})
    assert [one["code"] for one in json.loads(said.err)["warnings"]] == ["MUN-L102"]
    entry_id = document["results"][0]["entry"]["id"]
    good = ("-entryID", entry_id, "-parentID", f"spiffe://example.org{agent.path}", *WEB)
    code, said = await command("update", *good, "-output", "json")
    assert (code, said.err) == (0, "")
    code, said = await command("update", *good[:-1], "unix:uid:0")
    assert (code, said.err.split()[1]) == (0, "MUN-L301:")


async def test_what_is_not_written_is_not_warned_of(live, command):
    words = ("create", "-parentID", "spiffe://example.org/nobody", *WEB)
    await command(*words)
    code, said = await command(*words)
    assert code == 1
    assert "Warning" not in said.err


async def test_lint_tells_and_counts_and_leaves_out_what_is_not_wanted(live, command):
    agent = await live.join()
    first, second = await live.entries(
        entry(path="/a", parent=agent.path), entry(path="/b", parent=agent.path, selectors=[("unix", "uud:1")])
    )
    code, said = await command("lint")
    assert code == 1
    assert said.out.splitlines()[-1] == "Found 1 problem in 2 entries (MUN-L303: 1)"
    assert said.out.startswith(f"MUN-L303 entry {second} (spiffe://example.org/b)\n")
    assert "did you mean unix:uid:1?" in said.out
    assert (await command("lint", "-ignore", "MUN-L303"))[0] == 0
    assert (await command("lint", "-entryID", first))[0] == 0
    code, said = await command("lint", "-entryID", second, "-output", "json")
    document = json.loads(said.out)
    assert (code, document["counts"], document["entries"], document["complete"]) == (1, {"MUN-L303": 1}, 1, True)
    for words, text in ((("-entryID", "none"), "not there"), (("-ignore", "MUN-L999"), "known: MUN-L101")):
        code, said = await command("lint", *words)
        assert code == 1
        assert text in said.err


async def test_agents_may_not_ask(live):
    """S1, A10: selectors of others' entries are for administrators."""
    agent = await live.join()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await Stub(agent.dialer.channel(), EXPLAIN).LintEntries(pb.LintEntriesRequest(), timeout=10)
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
