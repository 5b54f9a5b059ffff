"""A verifier of nodes that waits for somebody else holds up no other (k8s_psat and its API server)."""

import asyncio
import threading

from attestors.api import Attested
from identity_server.domain.access import Caller, CallerKind
from identity_server.services.attest_agent import THREADS, AttestAgents
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.spiffe_id import TrustDomain

CALLER = Caller(CallerKind.ANYONE, "203.0.113.1:1")
CSR = build_csr(generate(KeyKind.EC_P256), spiffe_id=None)


class Waiting:
    """Believes every node once `gate` is open."""

    def __init__(self, name):
        self.name = name
        self.gate = threading.Event()

    def verify(self, payload, key_digest):
        self.gate.wait(50)
        return Attested(f"/spire/agent/{self.name}/{len(payload)}", frozenset(), may_reattest=True)
        yield


async def test_nodes_of_a_cluster_that_does_not_answer_hold_up_no_others():
    slow, quick = Waiting("slow"), Waiting("quick")
    quick.gate.set()
    attest = AttestAgents(
        store=None,
        issuer=None,
        verifiers={one.name: one for one in (slow, quick)},
        clock=SystemClock(),
        audit=None,
        trust_domain=TrustDomain("example.org"),
        new_id=str,
    )
    stuck = [attest.begin(CALLER, "slow", b"x", CSR) for _ in range(THREADS + 2)]
    steps = [asyncio.ensure_future(one.step()) for one in stuck]
    other = attest.begin(CALLER, "quick", b"xy", CSR)
    assert await asyncio.wait_for(other.step(), 30) is None
    assert other.verdict.agent_path == "/spire/agent/quick/2"
    assert not any(step.done() for step in steps)
    slow.gate.set()
    assert await asyncio.gather(*steps) == [None] * len(stuck)
