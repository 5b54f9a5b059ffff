"""An agent's services over doubles: a simulated server, a clock that stands still, memory for a disk."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from node_agent.domain.node_state import NodeState
from node_agent.services.attest_workload import AttestWorkload
from node_agent.services.membership import Membership
from node_agent.services.node_record import NodeRecord
from node_agent.services.renew_svids import RenewSvids
from node_agent.services.steady_time import SteadyTime
from node_agent.services.synchronize import Synchronize
from node_agent.services.workload_svids import WorkloadSvids
from spiffe_core.errors import PreconditionFailed, Unauthenticated
from tests.builders import TD
from tests.doubles.clock import FakeClock
from tests.doubles.simulated_server import SimulatedServer


class TokenProver:
    """Presents one token."""

    name = "join_token"

    def __init__(self, token):
        self._token = token

    def prove(self):
        yield self._token.encode()


class HandedToken:
    """Credentials whose token a test changes."""

    advice = "a new join token is needed: ask the operator"
    one_use = True

    def __init__(self, token="t1"):
        self.token = token

    def fingerprint(self):
        return f"print of {self.token}" if self.token else ""

    def prover(self):
        if not self.token:
            raise PreconditionFailed("no join token was given")
        return TokenProver(self.token)


class HandedBundle:
    """What is configured for first contact, as a test changes it; an exception is raised."""

    def __init__(self, configured=None):
        self.configured = configured
        self.reads = 0

    async def bundle(self):
        self.reads += 1
        if isinstance(self.configured, Exception):
            raise self.configured
        return self.configured


class MemoryState:
    """A StateStore that remembers; `troubles` are raised first, one per save."""

    def __init__(self):
        self.saved = []
        self.cleared = 0
        self.troubles = []

    def save(self, state):
        if self.troubles:
            raise self.troubles.pop(0)
        self.saved.append(state)

    def clear(self):
        self.cleared += 1


class Process:
    """A subject that a test can end."""

    def __init__(self, uid=1000, pid=4242, gid=1000):
        self.pid, self.uid, self.gid = pid, uid, gid
        self.ended = False

    def require_alive(self):
        if self.ended:
            raise Unauthenticated("the calling process has ended")


async def inline(fn, /, *args, **kwargs):
    """An Offload without threads."""
    return fn(*args, **kwargs)


@dataclass
class World:
    """One composed agent and everything around it."""

    server: SimulatedServer
    clock: FakeClock
    token: HandedToken
    disk: MemoryState
    steady: SteadyTime
    node: NodeRecord
    workloads: WorkloadSvids
    membership: Membership
    renewals: RenewSvids
    sync: Synchronize
    configured: HandedBundle
    attestors: list = field(default_factory=list)

    async def settle(self):
        """Join if need be, sync, fetch everything due."""
        await self.membership.advance()
        await self.sync.once()
        await self.fetch()

    async def fetch(self):
        while await self.renewals.renew_due():
            pass


class Selecting:
    """A workload attestor that finds what it was given."""

    name = "scripted"

    def __init__(self, *selectors):
        self.selectors = frozenset(selectors)

    def attest(self, subject, deadline):
        from attestors.api import Findings

        return Findings(self.selectors)


def make_world(
    *,
    state=None,
    draw=lambda: 0.0,
    prefetch=1000,
    clock=None,
    server=None,
    disk=None,
    token=None,
    patience=None,
    **server_options,
):
    clock = clock or FakeClock()
    server = server or SimulatedServer(clock, **server_options)
    token, disk = token or HandedToken(), disk or MemoryState()
    steady = SteadyTime(clock)
    node = NodeRecord(state or NodeState(TD, bundle=server.bundle()), disk, inline)
    attestor = Selecting()
    workloads = WorkloadSvids(TD, AttestWorkload([attestor], clock=clock), clock=clock, steady=steady, idle=prefetch)
    configured = HandedBundle(server.bundle())
    membership = Membership(
        node=node,
        enrolment=server,
        credentials=token,
        first_contact=configured,
        patience=patience,
        clock=clock,
        steady=steady,
        draw=draw,
        on_ban=workloads.ban,
    )
    renewals = RenewSvids(
        server=server,
        membership=membership,
        workloads=workloads,
        clock=clock,
        steady=steady,
        draw=draw,
        offload=inline,
        prefetch=prefetch,
    )
    sync = Synchronize(
        server=server,
        membership=membership,
        workloads=workloads,
        renewals=renewals,
        steady=steady,
        draw=draw,
        interval=5.0,
        version="muniment/0.1.0",
    )
    parts = (server, clock, token, disk, steady, node, workloads, membership, renewals, sync, configured)
    return World(*parts, [attestor])


@pytest.fixture
def repository_root():
    return Path(__file__).parents[3]


@pytest.fixture
def world():
    return make_world()
