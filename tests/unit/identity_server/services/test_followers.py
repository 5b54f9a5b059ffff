"""The push streams of a server: whom a change concerns, when a stream ends, how far an agent is (architecture A9)."""

from datetime import timedelta

import pytest

from identity_server.services import followers as module
from identity_server.services.admission import Presented
from identity_server.services.followers import Followers
from spiffe_core.errors import Exhausted, Unavailable
from tests.builders import OTHER_TD, TD, make_bundle, sid
from tests.doubles.clock import FakeClock
from tests.doubles.state_maker import AGENT, FreeAdmission, StateMaker, attested, record

OTHER = "/spire/agent/b"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def server():
    maker = StateMaker()
    maker.apply(agents={path: attested("os:linux", path=path) for path in (AGENT, OTHER)}, bundles={TD: make_bundle()})
    return maker


@pytest.fixture
def admission():
    return FreeAdmission()


@pytest.fixture
def hub(server, admission, clock):
    return Followers(store=server, admissions=admission, clock=clock)


@pytest.fixture
def presented(clock):
    return lambda path=AGENT, serial="1": Presented("test", False, sid(path), serial, clock.now() + timedelta(hours=1))


def begun(hub, stack_of, presented, path=AGENT, position=""):
    """A stream that has been sent and has acknowledged everything."""
    stream = stack_of.enter_context(hub.follow(presented(path), position))
    if stream.sent is None:
        hub.first(stream, {})
    hub.acknowledge(stream, str(stream.sent.position), 0)
    return stream


@pytest.fixture
def opened():
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield stack


def test_a_change_wakes_only_those_it_concerns(hub, server, opened, presented):
    """B8: marking costs what the change touches."""
    mine, other = begun(hub, opened, presented), begun(hub, opened, presented, OTHER)
    server(record("1", "/web"))
    assert mine.news.is_set()
    assert mine.touched == {"1"}
    assert not other.news.is_set()


def test_nested_entries_and_aliases_wake_those_below(hub, server, opened, presented):
    mine, other = begun(hub, opened, presented), begun(hub, opened, presented, OTHER)
    server(record("1", "/web"))
    hub.next(mine)
    server(record("2", "/below", "/web"))  # the first child of an identity: who holds that is not known before
    assert mine.news.is_set()
    assert other.news.is_set()
    assert [one.id for one in hub.next(mine).entries] == ["2"]
    assert not hub.next(other)
    server(record("3", "/more", "/web"))
    assert mine.news.is_set()
    assert not other.news.is_set()


def test_many_changes_are_one_delta_and_nothing_is_queued(hub, server, opened, presented):
    """A9: slow agents are collapsed to the latest."""
    mine = begun(hub, opened, presented)
    for number in range(50):
        server(record("1", "/web", revision_number=number))
    delta = hub.next(mine)
    assert [one.revision_number for one in delta.entries] == [49]
    assert not mine.news.is_set()


def test_so_many_touched_entries_are_all_of_them(hub, server, opened, presented, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOUCHED", 3)
    mine = begun(hub, opened, presented)
    server(*(record(str(number), f"/{number}") for number in range(5)))
    assert mine.touched is None
    assert len(hub.next(mine).entries) == 5


def test_a_change_that_leaves_an_agent_as_it_is_sends_nothing_and_moves_nothing(hub, server, opened, presented):
    """The agent's position stays the one it was told: it can go on from there."""
    mine = begun(hub, opened, presented)
    told = mine.sent.position
    server(record("1", "/web"))
    server(gone=("1",))
    assert not hub.next(mine)
    assert mine.sent.position == told
    assert not hub.next(mine, heartbeat=True)
    assert mine.sent.position == server.state.value.position


@pytest.mark.parametrize("away", [0.0, module.LEFT_SECONDS - 1])
def test_a_stream_goes_on_from_where_it_was(hub, server, presented, clock, away):
    """Resuming costs no snapshot."""
    with hub.follow(presented(), "") as first:
        hub.first(first, {})
        position = str(first.sent.position)
    server(record("1", "/web"))
    clock.advance(away)
    with hub.follow(presented(), position) as second:
        delta = hub.next(second)
    assert [one.id for one in delta.entries] == ["1"]
    assert not delta.all_entries
    assert not delta.bundles


def test_a_stream_beside_an_open_one_goes_on_as_well(hub, presented):
    """The agent opens the next one with its new certificate before this server has seen the old one end."""
    with hub.follow(presented(), "") as first:
        hub.first(first, {})
        with hub.follow(presented(), str(first.sent.position)) as second:
            assert second.sent is first.sent


@pytest.mark.parametrize("position", ["", "polled", "1.1.1", "9.9.9"])
def test_an_unknown_position_is_compared(hub, presented, position):
    with hub.follow(presented(), "") as first:
        hub.first(first, {})
    with hub.follow(presented(), position) as second:
        assert second.sent is None


def test_after_a_while_nothing_is_kept(hub, presented, clock):
    with hub.follow(presented(), "") as first:
        hub.first(first, {})
    clock.advance(module.LEFT_SECONDS + 1)
    with hub.follow(presented(), str(first.sent.position)) as second:
        assert second.sent is None
    with hub.follow(presented(OTHER), "") as third:
        hub.first(third, {})
    assert set(hub._left) == {OTHER}


@pytest.mark.parametrize(
    "change",
    [
        {"agents": {AGENT: attested(serial="")}},
        {"agents": {AGENT: None}},
        {"agents": {AGENT: attested(serial="2")}},
    ],
    ids=["banned", "evicted", "another serial"],
)
def test_a_stream_ends_with_what_authorised_it(hub, server, opened, presented, change):
    """A9: with the ban, the eviction, the certificate's successor; other agents' streams go on."""
    mine, other = begun(hub, opened, presented), begun(hub, opened, presented, OTHER)
    server.apply(**change)
    assert mine.news.is_set()
    with pytest.raises(Unavailable, match="open it again"):
        hub.next(mine)
    assert not other.ended


def test_a_pending_serial_keeps_its_stream(hub, server, opened, presented):
    mine = begun(hub, opened, presented)
    server.apply(agents={AGENT: attested(serial="0", new_serial="1")})
    hub.next(mine)


def test_a_stream_ends_when_its_root_leaves_the_bundle(hub, server, admission, opened, presented):
    mine = begun(hub, opened, presented)
    admission.void.add("1")
    server.apply(bundles={TD: make_bundle(sequence=2)})
    with pytest.raises(Unavailable):
        hub.next(mine)


def test_a_stream_ends_with_its_certificate(hub, opened, presented, clock):
    mine = begun(hub, opened, presented)
    assert hub.seconds_left(mine) == 3600
    clock.advance(3600)
    with pytest.raises(Unavailable):
        hub.next(mine)


def test_a_federated_bundle_goes_to_whose_entries_name_it(hub, server, opened, presented):
    mine, other = begun(hub, opened, presented), begun(hub, opened, presented, OTHER)
    server(record("1", "/web", federates_with=(OTHER_TD,)))
    hub.next(mine)
    server.apply(bundles={OTHER_TD: make_bundle(trust_domain=OTHER_TD)})
    assert not other.news.is_set()
    assert [one.trust_domain for one in hub.next(mine).bundles] == [OTHER_TD]
    server(gone=("1",))
    delta = hub.next(mine)
    assert delta.removed == ("1",)
    assert delta.removed_bundles == (OTHER_TD,)


def test_an_agent_has_a_revision_when_it_has_acknowledged_all_that_concerns_it(hub, server, opened, presented):
    mine, other = begun(hub, opened, presented), begun(hub, opened, presented, OTHER)
    before = server.state.value.position.revision
    state = server(record("1", "/web"))
    assert hub.revision_of(other) == state.position.revision, "it concerns the other one not at all"
    assert hub.revision_of(mine) == before
    hub.next(mine)
    assert hub.revision_of(mine) == before
    hub.acknowledge(mine, str(mine.sent.position), 3)
    assert hub.revision_of(mine) == state.position.revision
    assert mine.streams_behind == 3


@pytest.mark.parametrize("position", ["", "x", "1.99.1", "2.2.2", "1.-1.1", "1.1", "9" * 65, "1.٣.1"])
def test_what_was_never_sent_acknowledges_nothing(hub, server, opened, presented, position):
    mine = begun(hub, opened, presented)
    server(record("1", "/web"))
    hub.next(mine)
    before = hub.revision_of(mine)
    hub.acknowledge(mine, position, 0)
    assert hub.revision_of(mine) == before


def test_a_state_that_does_not_follow_looks_at_everything(hub, server, opened, presented):
    mine = begun(hub, opened, presented)
    server.load(server.state.value)
    assert mine.touched is None
    assert mine.news.is_set()


def test_there_is_a_limit(hub, opened, presented, monkeypatch):
    monkeypatch.setattr(module, "MAX_STREAMS", 1)
    begun(hub, opened, presented)
    with pytest.raises(Exhausted), hub.follow(presented(OTHER), ""):
        pass


def test_one_agent_cannot_take_the_streams_of_all_others(hub, opened, presented):
    """S53: a node that was broken into."""
    for _ in range(module.MAX_STREAMS_EACH):
        begun(hub, opened, presented)
    with pytest.raises(Exhausted, match="of this agent"), hub.follow(presented(), ""):
        pass
    begun(hub, opened, presented, OTHER)


def test_nothing_is_left_of_streams_that_ended(hub, server, presented):
    for _ in range(3):
        with hub.follow(presented(), "") as stream:
            hub.first(stream, {})
    assert not hub._open
    assert not hub._by_name
    assert not hub._by_agent
    assert len(hub._left) == 1
