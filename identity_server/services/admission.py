"""Use-case: decide who is calling and whether the caller may.

Theory of operation. The access table says as whom a method may be called (`domain.access`); for agents the agent check
follows (`domain.agents.admit`). Both are asked of the latest state in memory. *Memory may say yes, only the database
may say no* (architecture A8): an agent throws its SVID away when it is told NOT_ATTESTED, NOT_ACTIVE or BANNED, so
such an answer is read once more from the database before it leaves: one read at a time for each agent, remembered for
a second, and bounded in number. If the database cannot be read the answer is Unavailable, without details.

A pending serial is promoted in memory by the first call made with it and written behind; the overlay that remembers
it counts only as long as the agent's record is the very one it was made from.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime

from identity_server.domain import access, agents
from identity_server.domain.access import Caller, CallerKind
from identity_server.domain.agents import Admission, AttestedAgent
from identity_server.domain.state import State
from identity_server.ports import Store, UnitOfWork
from spiffe_core.bundle import BundleSet
from spiffe_core.clock import Clock
from spiffe_core.errors import AgentRefused, IdentityError, Refusal, Unauthenticated, Unavailable
from spiffe_core.runtime.supervise import spawn
from spiffe_core.spiffe_id import SpiffeId

log = logging.getLogger(__name__)

MAX_CONFIRMATIONS = 64
"""So many database reads for refusals at one time; a flood of strangers gets Unavailable instead."""
REMEMBER_SECONDS = 1.0
MAX_REMEMBERED = 4096

Confirmed = tuple[AttestedAgent | None, Admission]


@dataclass(frozen=True, slots=True)
class Presented:
    """What the transport knows of the other end: a local process, a verified certificate, or neither."""

    origin: str
    local: bool = False
    spiffe_id: SpiffeId | None = None
    serial: str = ""
    not_after: datetime | None = None
    anchor: bytes | None = None
    address: str = ""
    """The IP address of a connection over the network."""


class Admissions:
    """Lets callers in. Belongs to the event loop."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._overlay: dict[str, tuple[AttestedAgent, AttestedAgent]] = {}
        self._confirming: dict[tuple[str, str], asyncio.Task[Confirmed]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused: dict[tuple[str, str], tuple[float, Refusal]] = {}
        self._roots_of: BundleSet | None = None
        self._roots: dict[str, frozenset[bytes]] = {}

    async def admit(self, method: str, presented: Presented) -> Caller:
        """The caller as which `presented` may call `method`.

        Raises:
            Forbidden: the access table says no.
            AgentRefused: it is an agent that may not call any more, and the database confirms that.
            Unauthenticated: the certificate has expired or its authority is no longer trusted.
            Unavailable: the database cannot be asked.
        """
        state = self._store.state.value
        who = presented.spiffe_id
        ours = who is not None and who.member_of(state.trust_domain)
        kind = access.decide(
            method,
            local=presented.local,
            identified=ours,
            admin=ours and who is not None and state.is_admin(who.path),
            downstream=ours and who is not None and state.is_downstream(who.path),
        )
        if kind is CallerKind.AGENT or kind is CallerKind.ADMIN or kind is CallerKind.DOWNSTREAM:
            assert who is not None, "only certificates of this trust domain come here"
            not_after = self._certified(presented, state)
            if kind is not CallerKind.AGENT:
                if self._clock.now() >= not_after:
                    raise Unauthenticated("the client certificate has expired")
            elif not self._let_in(who.path, presented.serial, not_after, state):
                await self._confirm_refusal(who.path, presented.serial, not_after)
        return Caller(kind, presented.origin, who, presented.serial, presented.address)

    def speaks_for_nobody(self, presented: Presented) -> bool:
        """True if a connection with this certificate is to be cut, by memory alone.

        The certificate expired or its authority left the bundle, or its agent was banned and it is no administrator's.
        A serial that is no longer active is left to the next call: the agent is about to use its newer certificate.
        """
        who, not_after = presented.spiffe_id, presented.not_after
        if who is None or not_after is None:
            return False
        state = self._store.state.value
        if self._clock.now() >= not_after or not self._anchored(presented, state):
            return True
        agent = state.agents.get(who.path) if who.member_of(state.trust_domain) else None
        return agent is not None and agent.banned and not state.entries_for_path(who.path)

    def _certified(self, presented: Presented, state: State) -> datetime:
        """Every call anew (S2): the chain was verified and still ends in the bundle.

        Until when the certificate is good.
        """
        if presented.not_after is None:
            raise Unauthenticated("the client certificate was not verified")
        if not self._anchored(presented, state):
            raise Unauthenticated("the authority of the client certificate is no longer trusted; attest again")
        return presented.not_after

    def _let_in(self, path: str, serial: str, not_after: datetime, state: State) -> bool:
        """Whether memory lets the agent in; False if the database is to be asked."""
        agent = self._known(path, state)
        admission = agents.admit(agent, serial, not_after, self._clock.now())
        if admission.refusal is Refusal.AGENT_EXPIRED:
            raise AgentRefused(admission.refusal, agent=path)
        if admission.promote and agent is not None:
            self._promote(path, agent)
        return admission.refusal is None

    async def _confirm_refusal(self, path: str, serial: str, not_after: datetime) -> None:
        """Let the agent in after all, if the database does; else refuse it."""
        agent, admission = await self._confirmed(path, serial, not_after)
        if admission.refusal is not None:
            raise AgentRefused(admission.refusal, agent=path)
        if admission.promote and agent is not None:
            self._promote(path, agent)

    def _known(self, path: str, state: State) -> AttestedAgent | None:
        """The agent by memory: the promoted form while the record is still the one it was promoted from."""
        agent = state.agents.get(path)
        ahead = self._overlay.get(path)
        if ahead is None:
            return agent
        if agent == ahead[0]:
            return ahead[1]
        del self._overlay[path]
        return agent

    def _promote(self, path: str, agent: AttestedAgent) -> None:
        """At once in memory, behind in the database."""
        if path in self._overlay:
            return
        after = agents.promoted(agent)
        if agent == self._store.state.value.agents.get(path):
            self._overlay[path] = (agent, after)
        spawn(self._write_promotion(path, after.serial), f"promote {path}", self._tasks)

    async def settled(self, seconds: float | None = None) -> bool:
        """Return when every promotion is written, or after so many seconds; whether they are.

        One that is not is made again: by the next call with that certificate, whichever server it reaches.
        """
        try:
            async with asyncio.timeout(seconds):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
        except TimeoutError:
            return False
        return True

    async def _write_promotion(self, path: str, serial: str) -> None:
        def command(uow: UnitOfWork) -> None:
            agent = uow.agents.get(path)
            if agent is not None and agent.new_serial == serial:
                uow.agents.put(agents.promoted(agent))

        try:
            await self._store.execute(command)
        except IdentityError as error:
            log.warning("a renewed agent certificate is in use but not yet recorded: %s", error.public)
        finally:
            self._overlay.pop(path, None)

    async def _confirmed(self, path: str, serial: str, not_after: datetime) -> Confirmed:
        """The agent check on what the database says now: one read for all who ask the same at the same time."""
        key = (path, serial)
        known = self._refused.get(key)
        if known is not None and known[0] > self._clock.monotonic():
            return None, Admission(known[1])
        under_way = self._confirming.get(key)
        if under_way is None:
            if len(self._confirming) >= MAX_CONFIRMATIONS:
                raise Unavailable("too many refusals to confirm just now, try again")
            under_way = self._confirming[key] = spawn(self._confirm(key, not_after), f"confirm {path}", set())
            under_way.add_done_callback(lambda _: self._confirming.pop(key, None))
        return await asyncio.shield(under_way)

    async def _confirm(self, key: tuple[str, str], not_after: datetime) -> Confirmed:
        path, serial = key
        try:
            agent = await self._store.read(lambda uow: uow.agents.get(path))
        except IdentityError as error:
            raise Unavailable("the database cannot be read just now, try again", cause=error.public) from None
        admission = agents.admit(agent, serial, not_after, self._clock.now())
        if admission.refusal is not None:
            if len(self._refused) >= MAX_REMEMBERED:
                self._refused.clear()
            self._refused[key] = (self._clock.monotonic() + REMEMBER_SECONDS, admission.refusal)
        return agent, admission

    def _anchored(self, presented: Presented, state: State) -> bool:
        """True if the chain's authority is in the present bundle of the certificate's own trust domain."""
        if state.bundles is not self._roots_of:
            self._roots_of = state.bundles
            every = state.bundles.all() if state.bundles is not None else ()
            self._roots = {bundle.trust_domain.name: frozenset(bundle.x509_roots) for bundle in every}
        if presented.spiffe_id is None or presented.anchor is None:
            return False
        return presented.anchor in self._roots.get(presented.spiffe_id.trust_domain.name, frozenset())
