"""Use-case: why does a workload get these identities, or none? Gathers what `domain.explanation` decides by.

Everything is read now, by the very parts that serve workloads. What was refused before is kept, in a bounded number and
for a bounded time, behind the id that its caller was told. Why it was refused is decided when somebody asks: that takes
a look at every entry, and whoever has no identity may be refused as often as he likes.
"""

from __future__ import annotations

import logging
import shlex
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from attestors.api import Findings as Attested
from attestors.api import PodContainer
from node_agent.services.attest_workload import AttestWorkload
from node_agent.services.pods import Pods
from node_agent.services.workload_svids import WorkloadSvids
from spiffe_core.clock import Clock
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import IdentityError, NotFound, Unauthenticated, Unavailable
from spiffe_core.explanation import explain, explain_no_pod, explain_pod, with_elsewhere
from spiffe_core.explanation_codes import Code
from spiffe_core.explanation_facts import (
    AgentFacts,
    Asked,
    ContainerExplanation,
    Elsewhere,
    Explanation,
    Findings,
    Issue,
)
from spiffe_core.selectors import Selector
from spiffe_core.wire.peer import UnixPeer, named_process

log = logging.getLogger(__name__)

MAX_REFUSALS = 1_000
REFUSAL_SECONDS = 900.0
MAX_SNAPSHOTS = 4
"""Sets of entries that are kept for refusals; of one from before them is said why it would be refused now."""
MAX_PROCESSES = 8
"""Processes of one container that are tried until one still lives."""
MAX_CONTAINERS = 64
"""Containers of one pod that are looked at."""
_FAILED = "failed unexpectedly; the agent's log has the cause"


@dataclass(slots=True)
class _Entries:
    """The entries there were; None once too many others came after them."""

    known: Mapping[str, RegistrationEntry] | None


@dataclass(frozen=True, slots=True)
class _Refusal:
    """One answer "no identity issued", as things stood."""

    at: float
    when: datetime
    found: Findings
    entries: _Entries


class Explain:
    """Belongs to the event loop.

    `facts` tells how the agent stands now; `elsewhere` asks the server how many entries match that are not this
    agent's; `new_id` makes the ids of refusals.
    """

    def __init__(
        self,
        *,
        workloads: WorkloadSvids,
        attestation: AttestWorkload,
        facts: Callable[[], AgentFacts],
        elsewhere: Callable[[frozenset[Selector]], Awaitable[tuple[int, str]]],
        pods: Pods,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._workloads = workloads
        self._attestation = attestation
        self._facts = facts
        self._elsewhere = elsewhere
        self._pods = pods
        self._clock = clock
        self._new_id = new_id
        self._refusals: OrderedDict[str, _Refusal] = OrderedDict()
        self._snapshots: deque[_Entries] = deque()

    async def process(self, pid: int) -> Explanation:
        """Why the process with this number gets what it gets.

        Raises:
            InvalidRequest: the number is not one.
        """
        try:
            peer = named_process(pid)
        except NotFound:
            return self._decide(
                Findings(self._facts(), no_process=f"there is no process {pid} that this agent can see")
            )
        try:
            return await self._with_server(await self._look_at(peer))
        except Unauthenticated:
            return self._decide(Findings(self._facts(), no_process=f"the process {pid} has ended"))
        finally:
            peer.process.close()

    async def caller(self, peer: UnixPeer) -> Explanation:
        """Why the process that asks gets what it gets. Raises Unauthenticated if it has ended."""
        return await self._with_server(await self._look_at(peer))

    async def pod(self, namespace: str, name: str) -> tuple[Explanation, tuple[ContainerExplanation, ...]]:
        """Why the containers of a pod of this node get what they get: the pod as a whole, and one by one.

        Of a container of which a process can be seen from here, that process is looked at like any other; of one of
        which none can, what the kubelet says of it.

        Raises:
            PreconditionFailed: no attestor of this agent knows pods.
        """
        try:
            found = await self._pods.containers(namespace, name)
        except NotFound as error:
            fix = f"kubectl get pod -n {shlex.quote(namespace)} {shlex.quote(name)} -o wide names its node: ask there"
            return explain_no_pod(self._facts(), Code.POD_UNKNOWN, error.public, fix), ()
        except Unavailable as error:
            cause = f"the kubelet could not be asked about {namespace}/{name}: {error.public}"
            fix = "put right what the k8s attestor says; its settings are in [attestors.k8s]"
            return explain_no_pod(self._facts(), Code.POD_NOT_ASKED, cause, fix), ()
        each = tuple([await self._container(one) for one in found[:MAX_CONTAINERS]])
        return explain_pod(self._facts(), f"{namespace}/{name}", each), each

    async def _container(self, one: PodContainer) -> ContainerExplanation:
        for pid in one.processes[:MAX_PROCESSES]:
            answer = await self.process(pid)
            if answer.code is not Code.NO_PROCESS:
                return ContainerExplanation(one.name, one.init, pid, answer)
        unseen = "no process of the container can be seen from the agent"
        mends = "run the agent with hostPID: true, or wait until the container runs"
        others = tuple(
            Asked(name, error=unseen, fix=mends) for name in self._attestation.types if name != self._pods.type
        )
        found = Findings(
            self._facts(),
            container=f"{one.name}, by what the kubelet says of it",
            asked=(Asked(self._pods.type, one.findings.selectors, one.findings.notes), *others),
            selectors=one.findings.selectors,
        )
        return ContainerExplanation(one.name, one.init, 0, await self._with_server(found))

    async def selectors(self, selectors: frozenset[Selector]) -> Explanation:
        """What a workload with these selectors would get, and why."""
        return await self._with_server(Findings(self._facts(), selectors=selectors))

    async def refused(self, peer: UnixPeer) -> str:
        """Remember that `peer` has just been refused an identity; the id to tell it."""
        try:
            found = await self._look_at(peer)
        except IdentityError as error:
            found = Findings(self._facts(), no_process=error.public)
        now = self._clock.monotonic()
        while self._refusals and (
            len(self._refusals) >= MAX_REFUSALS or next(iter(self._refusals.values())).at < now - REFUSAL_SECONDS
        ):
            self._refusals.popitem(last=False)
        refusal_id = self._new_id()
        self._refusals[refusal_id] = _Refusal(now, self._clock.now(), self._with_issues(found), self._snapshot())
        return refusal_id

    async def refusal(self, refusal_id: str) -> Explanation:
        """What stood behind a refusal, then or nearly; of entries that are not this agent's, as the server says now.

        Raises:
            NotFound: no refusal of the last quarter of an hour has this id.
        """
        kept = self._refusals.get(refusal_id)
        if kept is None or kept.at < self._clock.monotonic() - REFUSAL_SECONDS:
            minutes = int(REFUSAL_SECONDS / 60)
            text = (
                f"no refusal of the last {minutes} minutes has this id; "
                "ask about the process: node-agent explain --pid N"
            )
            raise NotFound(text)
        known = self._workloads.known if kept.entries.known is None else kept.entries.known
        explanation = explain(replace(kept.found, entries=tuple(known.values())), kept.when)
        elsewhere = await self._others(kept.found.selectors or frozenset())
        if elsewhere is None:
            return explanation
        return with_elsewhere(explanation, elsewhere, self._facts().agent_id)

    def _snapshot(self) -> _Entries:
        """The entries of now, shared by all refusals until they change; only the newest few sets are kept."""
        known = self._workloads.known
        if not self._snapshots or self._snapshots[-1].known is not known:
            self._snapshots.append(_Entries(known))
            if len(self._snapshots) > MAX_SNAPSHOTS:
                self._snapshots.popleft().known = None
        return self._snapshots[-1]

    async def _with_server(self, found: Findings) -> Explanation:
        """The explanation; if nothing matches, with what the server knows of entries that are not this agent's."""
        selectors = found.selectors or frozenset()
        if not self._workloads.matching(selectors):
            found = replace(found, elsewhere=await self._others(selectors))
        return self._decide(found)

    async def _others(self, selectors: frozenset[Selector]) -> Elsewhere | None:
        if not selectors or not self._facts().member:
            return None
        try:
            count, parent_id = await self._elsewhere(selectors)
        except IdentityError as error:
            log.debug("the server cannot be asked about other entries: %s", error.public)
            return None
        return Elsewhere(count, parent_id) if count else None

    async def _look_at(self, peer: UnixPeer) -> Findings:
        outcomes = await self._attestation.each(peer)
        asked = tuple(_asked(name, outcome) for name, outcome in outcomes.items())
        good = [one.selectors for one in asked if not one.error]
        program = f", {peer.program}" if peer.program else ""
        return Findings(
            self._facts(),
            process=f"pid {peer.pid}, uid {peer.uid}, gid {peer.gid}{program}",
            asked=asked,
            selectors=frozenset().union(*good) if good else None,
        )

    def _decide(self, found: Findings) -> Explanation:
        entries = tuple(self._workloads.known.values())
        return explain(replace(self._with_issues(found), entries=entries), self._clock.now())

    def _with_issues(self, found: Findings) -> Findings:
        """With how the SVIDs of the entries that match stand, and which types of selectors there can be."""
        issues = {}
        for entry in self._workloads.matching(found.selectors or frozenset()):
            held = self._workloads.held(entry.id)
            ends = None if held is None else held.not_after
            issues[entry.id] = Issue(ends, self._workloads.why_refused(entry.id))
        return replace(found, issues=issues, types=frozenset(self._attestation.types))


def _asked(name: str, outcome: Attested | Exception) -> Asked:
    if isinstance(outcome, Attested):
        return Asked(name, outcome.selectors, outcome.notes)
    return Asked(name, error=outcome.public if isinstance(outcome, IdentityError) else _FAILED)
