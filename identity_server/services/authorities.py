"""Use-cases around the signing authorities: start, rotate, retire, prune (architecture A15; R1, R17, R18, R31, R33).

Order, so that a crash at any point leaves nothing that signs unpublished: make a key in the slot that does not sign;
make an authority of it; in ONE command journal it as PREPARED and append its public half to the stored bundle; later,
in ONE command, mark it ACTIVE and its predecessor OLD; and only when that command has returned and the state in memory
shows the authority both ACTIVE and in the bundle, swap the signer. A restart replays the journal: authorities are
matched with keys by public key.

X.509, JWT and WIT authorities go through the same life, each kind in its own pair of slots (`authority_lines`). What to
do next is decided by `domain.rotation`, whether it may be done by `domain.authority`, inside the transaction that does
it (`authority_commands`). Bundles are read there too, so that two servers never overwrite each other's authorities.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from identity_server.domain.authority import (
    Activate,
    Authority,
    AuthorityKind,
    Command,
    Prepare,
    Retire,
    SlotName,
    Slots,
    Status,
    usable,
)
from identity_server.domain.published import signing_ids
from identity_server.domain.rotation import Do, Step, longest_whole_ttl, next_step
from identity_server.ports import AuditLog, KeyManager, Store, UpstreamAuthority
from identity_server.services.audited import audited, changed
from identity_server.services.authority_commands import WORDS, carry_out
from identity_server.services.authority_keys import AuthorityKeys
from identity_server.services.authority_lines import Birth, CaSettings, Line, TokenSettings
from identity_server.services.authority_pruning import AuthorityPruning
from identity_server.services.issuer import IssuedX509, Issuer
from identity_server.services.issuers import lines_of
from identity_server.services.publication_waits import PublicationWaits
from identity_server.services.tls_self_test import SelfTest, tls_self_test
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Internal, InvalidRequest, Unavailable, Unimplemented

__all__ = ["Authorities", "CaSettings", "IssuedX509", "Issuer", "TokenSettings"]

MAX_STEPS = 8
"""More steps than any repair takes; a tick that still wants more is a fault, not a loop."""

log = logging.getLogger(__name__)


class Authorities:
    """Owns this server's signing authorities and hands out the issuers. Belongs to the event loop."""

    def __init__(
        self,
        store: Store,
        keys: KeyManager,
        clock: Clock,
        audit: AuditLog,
        settings: CaSettings,
        entropy: Callable[[int], bytes],
        upstream: UpstreamAuthority | None = None,
        *,
        self_test: SelfTest | None = None,
    ) -> None:
        self._store, self._clock, self._audit, self._settings = store, clock, audit, settings
        test = self_test or tls_self_test(settings.trust_domain, clock, entropy)
        self._keys = AuthorityKeys(keys, test, reset=settings.reset_keys)
        self.below_upstream = upstream is not None
        """Whether somebody else signs our CA certificate."""
        self._busy = asyncio.Lock()
        self.waits = PublicationWaits(store, clock)
        """How long what is prepared has been published, and who acknowledges it."""
        self.issuers, self._lines = lines_of(settings, store=store, clock=clock, entropy=entropy, upstream=upstream)
        """What signs, by kind; the same objects for the process's life."""
        self._pruning = AuthorityPruning(store, self._keys, clock, audit, settings, tuple(self._lines))
        self.held = False
        """True while the database has lost what this server knew: no step is taken by what it shows then."""
        self.last_error: IdentityError | None = None
        """Why the last tick failed; None when it succeeded. For health."""

    @property
    def issuer(self) -> Issuer:
        """Signs leaves with whatever authority is active."""
        return self.issuers.x509

    @property
    def active(self) -> Authority | None:
        """The X.509 authority that signs now."""
        return self._lines["x509"].seated

    def believes_clock(self) -> bool:
        """Look at the clock; False for an hour after it jumped, in which nothing is deleted for having expired."""
        self._pruning.look_at_clock()
        return self._pruning.clock_is_believed

    @property
    def key_trouble(self) -> str:
        """Why a key cannot be used now, "" if all can. For health."""
        return self._keys.trouble

    async def start(self) -> None:
        """Replay the journal, match it with the keys, and see that an authority of each kind is active.

        Raises:
            CorruptState: a persistent key of an authority in force is missing or another one.
            Unavailable: the database or the key store cannot be used now.
            PreconditionFailed: our own TLS could not verify what the authority signs.
        """
        self._warn_of_short_life()
        async with self._busy:
            self._pruning.look_at_clock()
            server = self._settings.server_id
            journal = await self._store.read(lambda uow: uow.authorities.of_server(server))
            for one in Slots.of(journal, "x509"):
                if one.status is Status.ACTIVE:
                    await self._keys.require_verifiable(one)
            lost = [
                (line, one) for line in self._lines.values() for one in self._keys.lost(Slots.of(journal, line.kind))
            ]
            for line, one in lost:
                await self._change(line, Retire(one.authority_id), one)
                log.warning("authority retired: its key is gone", extra={"facts": _facts(one)})
            for line in self._lines.values():
                try:
                    await self._advance(line)
                except Unavailable as error:  # a rotation that is due can wait as long as somebody signs (R11)
                    if line.seated is None:
                        raise
                    self.last_error = error
                    log.warning("the next signing authority could not be prepared; trying again", exc_info=error)
        if any(line.seated is None for line in self._lines.values()):
            raise Unavailable("no signing authority could be activated; see the log, then start again")

    async def tick(self) -> None:
        """Do what is due: prepare, activate, retire, prune. Call at least every 10 seconds.

        A failure is logged and kept in `last_error`; the signers in force go on signing and the next tick tries again.
        A kind that fails does not hold up the others.
        """
        async with self._busy:
            await self._keys.check()
            self._pruning.look_at_clock()
            failures: list[IdentityError] = []
            for line in self._lines.values():
                try:
                    await self._advance(line)
                except IdentityError as error:
                    failures.append(error)
            try:
                if not failures:
                    await self._pruning.run()
            except IdentityError as error:
                failures.append(error)
            self.last_error = failures[0] if failures else None
            for failure in failures:
                log.warning("the signing authorities could not be looked after; trying again", exc_info=failure)

    def slots(self, kind: AuthorityKind) -> Slots:
        """This server's slots of one kind.

        Raises:
            Unimplemented: this kind is switched off.
            Unavailable: nothing signs yet.
        """
        line = self._line(kind)
        if line.seated is None:
            raise Unavailable("server is initializing")
        return self._view(line)[0]

    async def prepare(self, kind: AuthorityKind, actor: str) -> Authority:
        """Make the next authority now, in place of one that is prepared already, which then never signs."""
        line = self._line(kind)
        async with self._busy:
            standing = self.slots(kind).prepared
            if standing is not None:
                await self._change(line, Retire(standing.authority_id), standing, actor)
            fresh = await self._prepare(line, self._view(line)[0], actor)
            self.waits.waited(line.kind, fresh)
            return fresh

    async def activate(self, kind: AuthorityKind, authority_id: str, actor: str) -> Authority:
        """Let the prepared authority sign, as soon as all agents have it or it stood in the bundle for 10 s.

        Agents on push streams that have not acknowledged it by then, and servers behind it, are waited for until it has
        stood for a minute (X.509 only; A15).

        Raises:
            InvalidRequest: this id is not that of the authority in the slot that does not sign.
            Internal: that authority is not a prepared one.
        """
        line = self._line(kind)
        self._next(kind, authority_id)
        acknowledged = await self.waits.until_published(kind, authority_id, lambda: self.slots(kind))
        async with self._busy:
            slots = self.slots(kind)
            if slots.active is None or slots.active.authority_id != authority_id:  # the schedule may have been faster
                chosen = self._next(kind, authority_id)
                if self._keys.of(chosen) is None:
                    raise Internal("the key of this authority is gone: prepare another")
                waited = self.waits.waited(kind, chosen)
                await self._change(line, Activate(authority_id, frozenset(), waited, acknowledged), chosen, actor)
            active = self.slots(kind).active
            if active is None or active.authority_id != authority_id:
                raise Unavailable("the state in memory does not follow the database's authorities; try again")
            return active

    async def destroy_key(self, digest: bytes) -> str:
        """Delete the private key that an order names, once no authority in the journal has it; its slot, "" if none.

        Raises:
            PreconditionFailed: an authority of this server still has it.
        """
        async with self._busy:
            return await self._keys.destroy(digest, self._store.state.value.authorities)

    def _line(self, kind: AuthorityKind) -> Line:
        line = self._lines.get(kind)
        if line is None:
            raise Unimplemented(f"{WORDS[kind]} functionality is disabled")
        return line

    def _next(self, kind: AuthorityKind, authority_id: str) -> Authority:
        """The authority in the slot that does not sign, if it has this id and is prepared."""
        found = self.slots(kind).find(authority_id)
        if found is None or found.status is Status.ACTIVE:
            raise InvalidRequest("unexpected authority ID", field="authority_id")
        if found.status is not Status.PREPARED:
            raise Internal("only Prepared authorities can be activated: this one is Old")
        return found

    async def _advance(self, line: Line) -> None:
        """Take steps until nothing is due, the signer following the journal after each."""
        for _ in range(MAX_STEPS):
            self._require_history()
            slots, bundle = self._view(line)
            self._follow(line, slots, bundle)
            step = next_step(slots, self._now(), bundle=bundle, waited=self.waits.waited(line.kind, slots.prepared))
            if step.do is Do.NOTHING:
                return
            log.info("authority: %s", step.do.value, extra={"facts": {"because": step.why, **_facts(step.authority)}})
            await self._take(line, step, slots)
        raise Unavailable("the state in memory does not follow the database's authorities; trying again")

    def _require_history(self) -> None:
        if self.held:
            raise Unavailable(
                "the database lost what this server had stored; its authorities are published again first"
            )

    async def _take(self, line: Line, step: Step, slots: Slots) -> None:
        if step.do is Do.PREPARE:
            await self._prepare(line, slots)
        elif step.authority is not None and step.do is Do.ACTIVATE and self._keys.of(step.authority) is None:
            log.error("the prepared authority's key is gone; making another", extra={"facts": _facts(step.authority)})
            await self._change(line, Retire(step.authority.authority_id), step.authority)
        elif step.authority is not None and step.do is Do.ACTIVATE:
            waited = self.waits.waited(line.kind, step.authority)
            await self._change(line, Activate(step.authority.authority_id, frozenset(), waited), step.authority)
        elif step.authority is not None:
            await self._change(line, Retire(step.authority.authority_id), step.authority)

    async def _prepare(self, line: Line, slots: Slots, actor: str = "") -> Authority:
        server = self._settings.server_id
        # The database is asked once more: the slot's key is about to be replaced, so no authority in force may own it.
        # As a command, not a query: it stands in the queue behind a change whose outcome we were not told (R33).
        journal = Slots.of(await self._store.execute(lambda uow: uow.authorities.of_server(server)), line.kind)
        slot = slots.free
        holder = journal[slot]
        if journal.prepared is not None or (holder is not None and holder.status is not Status.OLD):
            raise Unavailable("the state in memory is behind the database; trying again")
        self._require_history()
        active = slots.active
        scheduled = not actor and active is not None and usable(active, self._now())
        if scheduled:
            line.require_due()
        key = await self._keys.fresh(line, slot)
        now = self._now()
        birth = await line.bear(
            key, now, self._keys.offload, active.not_after if scheduled and active is not None else 0
        )
        self._require_history()
        authority = self._born(line, slot, birth, now, slots)
        await self._change(line, Prepare(authority, birth.roots), authority, actor)
        return authority

    def _born(self, line: Line, slot: SlotName, birth: Birth, now: int, slots: Slots) -> Authority:
        """The authority of a new key. Below a root that is known already there is nothing to wait for."""
        known = [one.published_at for one in slots if birth.anchor_id and one.published_as == birth.anchor_id]
        return Authority(
            authority_id=birth.authority_id,
            server_id=self._settings.server_id,
            slot=slot,
            status=Status.PREPARED,
            certificate=birth.material,
            issued_at=now,
            not_after=birth.not_after,
            published_at=min(known, default=now),
            kind=line.kind,
            upstream_chain=birth.chain,
            anchor_id=birth.anchor_id,
        )

    async def _change(self, line: Line, command: Command, about: Authority, actor: str = "") -> None:
        """Audit, then decide and write in one transaction, then let the signer follow."""
        if isinstance(command, Activate):
            await self._keys.require_verifiable(about)
        now, settings = self._now(), self._settings
        with audited(self._audit, changed(type(command).__name__.lower(), about, actor)):
            await self._store.execute(
                lambda uow: carry_out(uow, settings.server_id, settings.trust_domain, line.kind, command, now)
            )
        self._follow(line, *self._view(line))

    def _follow(self, line: Line, slots: Slots, bundle: frozenset[str]) -> None:
        """Make the signer the journal's active authority, if it stands in the stored bundle; else nobody signs."""
        active, seated = slots.active, line.seated
        if active is None or active.published_as not in bundle:
            if seated is not None:
                log.error(
                    "the active authority left the journal or the bundle, or was tainted; it signs no more",
                    extra={"facts": _facts(seated)},
                )
            line.vacate()
        elif seated != active:
            key = self._keys.of(active)
            if key is None:
                line.vacate()
                log.error("the key of the active authority is gone; nothing is signed", extra={"facts": _facts(active)})
            else:
                line.seat(active, key)
                log.info("authority signs from now on", extra={"facts": _facts(active)})

    def _view(self, line: Line) -> tuple[Slots, frozenset[str]]:
        """The slots of a kind, and its ids that stand untainted in the stored bundle, by the latest state."""
        state = self._store.state.value
        own = state.bundles.own if state.bundles is not None else None
        return Slots.of(state.authorities, line.kind), signing_ids(own, line.kind)

    def _warn_of_short_life(self) -> None:
        whole = longest_whole_ttl(int(self._settings.ca_ttl.total_seconds()))
        if max(self._settings.x509_ttl, self._settings.agent_ttl).total_seconds() > whole:
            log.warning(
                "SVIDs may end sooner than their TTL: ca.ttl is less than six times as long",
                extra={"facts": {"longest_whole_ttl": whole}},
            )

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


def _facts(authority: Authority | None) -> dict[str, object]:
    if authority is None:
        return {}
    return {"authority_id": authority.authority_id, "slot": authority.key_slot, "not_after": authority.not_after}
