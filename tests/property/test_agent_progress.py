"""A9: what one server writes down about its agents, another reads as it was meant."""

import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity_server.domain.agent_progress import AgentProgress, documents, merged, paths_of, read
from spiffe_core.errors import CorruptState

numbers = st.integers(0, 2**40)
paths = st.text("abc/.-_9", min_size=1, max_size=8).map(lambda text: f"/spire/agent/{text}")
pushed = st.builds(AgentProgress, paths, numbers, connected=st.just(value=True), streams_behind=st.integers(0, 3))
polls = st.builds(AgentProgress, paths, numbers, connected=st.just(value=False), polled_at=numbers)
fleets = st.lists(pushed | polls, max_size=12, unique_by=lambda one: one.agent_path)


@given(fleets, numbers)
def test_another_server_reads_what_was_written(agents, revision):
    members, brief = documents(agents, revision)
    found = read("there", paths_of(members), brief)
    assert found.revision == revision
    wanted = sorted((replace(one, server_id="there") for one in agents), key=lambda one: one.agent_path)
    assert list(found.agents) == wanted


@given(st.lists(fleets, max_size=4), st.randoms())
def test_whoever_is_asked_first_makes_no_difference(servers, order):
    """Each agent is what the best of its servers knows: a stream before polls, and the farther of two alike."""
    every = [one for agents in servers for one in agents]
    found = merged(every)
    order.shuffle(every)
    shuffled = merged(every)
    assert {path: (one.connected, one.revision) for path, one in found.items()} == {
        path: (one.connected, one.revision) for path, one in shuffled.items()
    }
    for one in every:
        best = found[one.agent_path]
        assert (best.connected, best.revision) >= (one.connected, one.revision)


def test_what_a_silent_server_knew_counts_least():
    lost = AgentProgress("/spire/agent/a", 9, connected=False, server_id="gone", unknown_since=5)
    there = AgentProgress("/spire/agent/a", 3, connected=False, polled_at=1)
    assert merged((lost, there)) == merged((there, lost)) == {"/spire/agent/a": there}


@pytest.mark.parametrize(
    "brief",
    [
        b"",
        b"x",
        zlib.compress(b"[]"),
        zlib.compress(b"{}"),
        zlib.compress(b'{"revision":-1,"behind":[],"polls":[]}'),
        zlib.compress(b'{"revision":1,"behind":[[0,1,1]],"polls":[]}'),
        zlib.compress(b'{"revision":true,"behind":[],"polls":[]}'),
        zlib.compress(b'{"revision":1,"behind":[1],"polls":[]}'),
        zlib.compress(b'{"revision":1,"behind":[],"polls":[]}')[:-3],
        zlib.compress(b'{"revision":1,"behind":[],"polls":[]}' + b" " * (65 * 1024 * 1024), 1),
    ],
    ids=range(10),
)
def test_what_no_server_of_ours_wrote_is_refused(brief):
    with pytest.raises(CorruptState, match="server_progress"):
        read("there", (), brief)
