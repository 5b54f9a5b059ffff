"""The agent's services through the troubles they must get out of by themselves (R8, R11, R17 to R23, R44, R50)."""

from datetime import timedelta

from node_agent.domain.entry_cache import Stamp
from node_agent.domain.node_state import NodeState, believing_both
from node_agent.domain.standing import Phase
from node_agent.ports import ServerUnproven
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.errors import ConfigError, Unavailable
from tests.authority import SpiffeTestCA
from tests.builders import TD, make_entry
from tests.doubles.clock import FakeClock
from tests.doubles.simulated_server import SimulatedServer
from tests.unit.node_agent.conftest import HandedToken, make_world

DELAY = timedelta(minutes=10)


class ReplacedServer(SimulatedServer):
    """A server that is believed only by those who know its present authority, as the real connection has it."""

    world = None

    def replace_authorities(self):
        self.first_ca = self.ca
        self.ca = self._new_ca()
        self.authorities = {self.ca.der: False}
        self.sequence = 1

    async def _begin(self, name, *, member=False):
        if self.world is not None:
            node = self.world.node
            bundle = node.state.bundle if member else node.anchors_of(TD)
            if self.ca.der not in {one.der for one in bundle.x509_authorities}:
                self.calls.append(f"unproven {name}")
                raise ServerUnproven("the server is not proven by the trust bundle")
        await super()._begin(name, member=member)


class Pop(HandedToken):
    """Evidence that may be shown again and again."""

    advice = "look at [attestors.x509pop]"
    one_use = False


async def replaced(*, patience=DELAY, one_use=False, **options):
    """A joined agent with an SVID for a workload, whose server then gets new authorities that only the file knows."""
    clock = FakeClock()
    server = ReplacedServer(clock, reattestable=not one_use, **options)
    world = make_world(clock=clock, server=server, patience=patience, token=HandedToken() if one_use else Pop())
    server.world = world
    server.publish(make_entry(id="a"))
    await world.settle()
    assert world.workloads.all_held()
    server.replace_authorities()
    return world


async def live(world, seconds, step=5.0):
    """Let time pass as the loops would: look at the membership, sync when a member, fetch what is due."""
    end = world.clock.now() + timedelta(seconds=seconds)
    while world.clock.now() < end:
        world.clock.advance(step)
        await world.membership.advance()
        if world.membership.session.is_member:
            await world.sync.once()
            await world.renewals.renew_due()


async def test_replaced_authorities_are_waited_for_and_then_bootstrapped():
    """R23: nothing changes before the delay is over; then everything is of the new authority, without a restart."""
    world = await replaced()
    old = world.node.state.bundle
    world.configured.configured = world.server.bundle()
    await live(world, 590)
    assert world.node.state.bundle == old
    assert len(world.workloads.all_held()) == 1
    await live(world, 30)
    assert world.node.state.bundle == world.server.bundle()
    assert world.workloads.bundles.own == world.server.bundle()
    ((_, svid),) = world.workloads.all_held()
    assert svid.anchor == world.server.ca.der
    assert world.membership.session.doubt_since is None


async def test_the_configured_bundle_is_read_when_it_is_needed():
    """A file that is put right later helps without a restart."""
    world = await replaced()
    await live(world, 900)
    assert world.node.state.bundle != world.server.bundle()
    assert world.configured.reads > 0
    world.configured.configured = ConfigError("trust_bundle_path: /b.pem cannot be read")
    await live(world, 60)
    assert "cannot be read" in world.membership.session.why
    world.configured.configured = world.server.bundle()
    await live(world, 60)
    assert world.node.state.bundle == world.server.bundle()


async def test_without_the_operators_leave_the_configured_bundle_is_never_read_again():
    """rebootstrap_mode = "never"."""
    world = await replaced(patience=None)
    world.configured.configured = world.server.bundle()
    reads = world.configured.reads
    await live(world, 7200, step=30.0)
    assert world.membership.session.phase is Phase.UNJOINED
    assert world.configured.reads == reads
    assert "attest" not in world.server.calls[world.server.calls.index("unproven sync_entries") :]


async def test_the_true_server_is_found_again_after_the_delay():
    """An impostor that nobody configured proves: the believed bundle stays in force all the while."""
    world = await replaced()
    true, impostor = world.node.state.bundle, world.server.ca
    world.server.ca = SpiffeTestCA("example.org", now=world.clock.now())
    await live(world, 900)
    assert world.node.state.bundle == true
    world.server.ca = world.server.first_ca
    world.server.authorities = {world.server.ca.der: False}
    await live(world, 60)
    assert world.membership.session.doubt_since is None
    assert world.sync.synced
    assert impostor.der not in {one.der for one in world.node.state.bundle.x509_authorities}


async def test_with_a_join_token_it_serves_on_and_a_new_token_ends_it():
    """R22, R23: what is valid is served; a token put down after the delay is used within one look."""
    world = await replaced(one_use=True)
    world.configured.configured = world.server.bundle()
    await live(world, 700)
    assert len(world.workloads.all_held()) == 1
    assert world.membership.session.is_member
    world.server.tokens["t2"] = None
    world.token.token = "t2"
    await live(world, 15)
    assert world.node.state.bundle == world.server.bundle()
    ((_, svid),) = world.workloads.all_held()
    assert svid.anchor == world.server.ca.der


async def test_an_outage_longer_than_every_svid_ends_within_a_minute():
    """R21, R22: with evidence that may be used again, and with nothing lost of what was valid."""
    clock = FakeClock()
    world = make_world(clock=clock, server=SimulatedServer(clock, reattestable=True), token=Pop())
    world.server.publish(make_entry(id="a"))
    await world.settle()
    world.server.troubles.extend([Unavailable("away")] * 100_000)
    await live(world, 3 * 3600, step=30.0)
    assert world.membership.session.phase is Phase.UNJOINED
    assert world.workloads.bundles.own.x509_authorities
    world.server.troubles.clear()
    await live(world, 60)
    assert world.membership.session.phase is Phase.JOINED
    assert world.sync.synced
    ((_, svid),) = world.workloads.all_held()
    assert svid.not_after > world.clock.now()


async def test_a_clock_set_a_day_ahead_and_back_costs_a_used_token_nothing():
    """R17, R19: the SVID counts as ended for as long as the clock is wrong, and is taken up again."""
    world = make_world()
    await world.settle()
    svid = world.node.state.svid
    world.clock.jump(25 * 3600)
    await world.membership.advance()
    assert world.membership.session.phase is Phase.UNJOINED
    assert world.node.state.svid is svid
    world.clock.jump(-25 * 3600)
    await live(world, 5)
    assert world.membership.session.phase is Phase.JOINED
    assert world.node.state.svid is svid
    assert world.sync.synced


async def test_a_clock_set_back_leaves_the_plan_and_makes_no_storm():
    """R18: renewed when half of the life has passed as timers count it, once."""
    world = make_world()
    await world.settle()
    world.clock.jump(-2 * 3600)
    world.server.rotate()
    await live(world, 1700)
    assert "renew" not in world.server.calls
    await live(world, 200)
    assert world.server.calls.count("renew") == 1


async def test_a_full_disk_does_not_keep_reusable_evidence_from_being_shown():
    """R11: only a token is lost with an unstored key."""
    clock = FakeClock()
    world = make_world(clock=clock, server=SimulatedServer(clock, reattestable=True), token=Pop())
    world.disk.troubles.extend([Unavailable("no space left on device")] * 5)
    await world.membership.advance()
    assert world.membership.session.phase is Phase.JOINED
    assert "no space left" in world.node.trouble
    for _ in range(6):
        await world.membership.advance()
    assert world.node.trouble == ""
    assert world.disk.saved[-1] == world.node.state


async def test_entries_are_read_whole_after_the_server_forgot_the_agent():
    """R50: an older database gives revision numbers out a second time; what differs must not be taken for known."""
    clock = FakeClock()
    world = make_world(clock=clock, server=SimulatedServer(clock, reattestable=True), token=Pop())
    world.server.publish(make_entry(id="a", revision_number=5))
    await world.settle()
    world.server.publish(make_entry(id="a", spiffe_id="/other", revision_number=5))
    known = []
    listing = world.server.sync_entries

    async def watched(stamps):
        known.append(dict(stamps))
        return await listing(stamps)

    world.server.sync_entries = watched
    world.server.evict()
    await world.sync.once()
    assert isinstance(next(iter(known[0].values())), Stamp)
    await live(world, 10)
    assert {} in known[1:]
    assert str(world.workloads.entries["a"].spiffe_id).endswith("/other")


def test_what_proves_the_server_in_a_bootstrap():
    """The believed bundle first: what is known to be tainted stays so."""
    one, two = SpiffeTestCA("example.org").der, SpiffeTestCA("example.org").der
    believed = TrustBundle(TD, (X509Authority(one, tainted=True),), sequence=7)
    configured = TrustBundle(TD, (X509Authority(one), X509Authority(two)))
    both = believing_both(believed, configured)
    assert both.x509_authorities == (X509Authority(one, tainted=True), X509Authority(two))
    assert (believing_both(None, configured), believing_both(believed, None)) == (configured, believed)
    assert believing_both(None, None) is None


def test_the_anchors_of_a_bootstrap_are_for_the_own_trust_domain():
    world = make_world(state=NodeState(TD))
    world.node.anchors = TrustBundle(TD, (X509Authority(SpiffeTestCA("example.org").der),))
    assert world.node.anchors_of(TD) is world.node.anchors
    assert world.node.anchors_of(type(TD)("other.test")) is None
