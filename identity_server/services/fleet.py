"""Use-cases: see, ban and evict agents, note what version they run, and make join tokens for new ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from identity_server.domain import agents, join_tokens
from identity_server.domain.access import Caller
from identity_server.domain.agents import AttestedAgent
from identity_server.domain.audit import AgentChanged, JoinTokenCreated
from identity_server.domain.join_tokens import JoinToken
from identity_server.domain.listing import AgentFilter, Page
from identity_server.ports import AuditLog, Store, UnitOfWork
from identity_server.services.audited import audited
from identity_server.services.registration import page_limit
from spiffe_core.clock import Clock
from spiffe_core.errors import Conflict, Internal, InvalidRequest, NotFound
from spiffe_core.spiffe_id import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True)
class NewToken:
    """A join token as it is shown once, to whoever made it."""

    value: str
    expires_at: int

    def __repr__(self) -> str:
        return f"<join token, expires at {self.expires_at}>"


class Fleet:
    """Keeps the agents' records."""

    def __init__(
        self, *, store: Store, clock: Clock, audit: AuditLog, trust_domain: TrustDomain, new_token: Callable[[], str]
    ) -> None:
        self._store = store
        self._clock = clock
        self._audit = audit
        self._trust_domain = trust_domain
        self._new_token = new_token

    async def get(self, spiffe_id: SpiffeId) -> AttestedAgent:
        """One agent."""
        path = self._path(spiffe_id)
        return _found(await self._store.read(lambda uow: uow.agents.get(path)))

    async def page(self, wanted: AgentFilter, token: str, size: int) -> Page[AttestedAgent]:
        """A page of agents; size 0 asks for all of them."""
        limit = page_limit(size)
        return await self._store.read(lambda uow: uow.agents.page(wanted, token, limit))

    async def count(self, wanted: AgentFilter) -> int:
        """How many agents there are."""
        return await self._store.read(lambda uow: uow.agents.count(wanted))

    async def ban(self, caller: Caller, spiffe_id: SpiffeId) -> None:
        """Let the agent in no more, with any certificate, and refuse to attest it again."""
        with audited(self._audit, AgentChanged(change="ban", spiffe_id=str(spiffe_id), actor=caller.actor)):
            path = self._path(spiffe_id)

            def command(uow: UnitOfWork) -> None:
                uow.agents.put(agents.banned(_found(uow.agents.get(path))))

            await self._store.execute(command)

    async def delete(self, caller: Caller, spiffe_id: SpiffeId) -> None:
        """Forget the agent (evict it): it may attest again if its credential allows that."""
        with audited(self._audit, AgentChanged(change="delete", spiffe_id=str(spiffe_id), actor=caller.actor)):
            path = self._path(spiffe_id)

            def command(uow: UnitOfWork) -> None:
                _found(uow.agents.get(path))
                uow.agents.remove(path)

            await self._store.execute(command)

    async def note_version(self, caller: Caller, version: str) -> None:
        """Remember what version the calling agent runs; an empty one says nothing."""
        agents.check_version(version)
        if not version:
            return
        assert caller.spiffe_id is not None, "the access table lets only agents in here"
        path = caller.spiffe_id.path

        def command(uow: UnitOfWork) -> None:
            before = _found(uow.agents.get(path))
            if before.agent_version != version:
                uow.agents.put(agents.with_version(before, version))

        await self._store.execute(command)

    async def create_join_token(
        self, caller: Caller, *, ttl: int, token: str = "", alias: SpiffeId | None = None
    ) -> NewToken:
        """Make a token that lets one node attest. `alias` is a further SPIFFE ID the node shall be known by."""
        value = join_tokens.check_token(token) if token else self._new_token()
        lifetime = join_tokens.check_ttl(ttl)
        if alias is not None:
            self._check_alias(alias)
        record = JoinToken(
            digest=join_tokens.digest_of(value),
            alias_path=alias.path if alias is not None else "",
            expires_at=int(self._clock.now().timestamp()) + lifetime,
        )
        event = JoinTokenCreated(
            digest_prefix=record.digest[:8].hex(),
            expires_at=record.expires_at,
            actor=caller.actor,
            alias=str(alias or ""),
        )
        with audited(self._audit, event):
            try:
                await self._store.execute(lambda uow: uow.join_tokens.add(record))
            except Conflict:
                raise Internal(
                    "failed to create token: this token exists already; choose another or leave it empty"
                ) from None
        return NewToken(value, record.expires_at)

    async def prune_tokens(self) -> int:
        """Delete join tokens that are of no more use; how many were deleted."""
        before = int(self._clock.now().timestamp()) - join_tokens.REPEAT_SECONDS
        return await self._store.execute(lambda uow: uow.join_tokens.prune(before))

    def _path(self, spiffe_id: SpiffeId) -> str:
        return agents.check_agent_id(spiffe_id, self._trust_domain).path

    def _check_alias(self, alias: SpiffeId) -> None:
        reason = ""
        if not alias.member_of(self._trust_domain):
            reason = f'"{alias}" is not a member of trust domain "{self._trust_domain}"'
        elif not alias.path:
            reason = f'"{alias}" needs a path'
        elif alias.is_reserved:
            reason = f'"{alias}" is in the reserved path /spire'
        if reason:
            raise InvalidRequest(f"invalid agent ID: {reason}", field="agent_id")


def _found(agent: AttestedAgent | None) -> AttestedAgent:
    if agent is None:
        raise NotFound("agent not found")
    return agent
