"""Use-cases around the signing authorities: start, rotate, retire, prune (architecture A15; R1, R17, R18, R31, R33).

Order, so that a crash at any point leaves nothing that signs unpublished: make a key in the slot that does not sign;
self-sign its certificate; in ONE command journal it as PREPARED and append its root to the stored bundle; later, in ONE
command, mark it ACTIVE and its predecessor OLD; and only when that command has returned and the state in memory shows
the authority both ACTIVE and in the bundle, swap the signer. A restart replays the journal: authorities are matched with
keys by public key.

What to do next is decided by `domain.rotation`, whether it may be done by `domain.authority`, inside the transaction
that does it. Bundles are read there too, so that two servers never overwrite each other's roots.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509

from identity_server.domain.audit import AuthorityChanged
from identity_server.domain.authority import (
    Activate,
    Authority,
    Command,
    Event,
    Forget,
    Forgotten,
    Prepare,
    Prepared,
    Retire,
    SlotName,
    Slots,
    Status,
    decide,
    key_slot,
)
from identity_server.domain.issuance import prepare, sign
from identity_server.domain.profiles import CA_SUBJECT, Profile, plan_ca
from identity_server.domain.rotation import (
    Do,
    Step,
    clock_jump,
    expired_authorities,
    expired_roots,
    longest_whole_ttl,
    next_step,
)
from identity_server.ports import AuditLog, KeyManager, Store, UnitOfWork
from identity_server.services.issuer import IssuedX509, Issuer, Signer, draw_serial
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import KeyKind
from spiffe_core.errors import CorruptState, IdentityError, Internal, Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.spiffe_id import TrustDomain

__all__ = ["Authorities", "CaSettings", "IssuedX509", "Issuer"]

MAX_STEPS = 8
"""More steps than any repair takes; a tick that still wants more is a fault, not a loop."""
PRUNE_PAUSE_SECONDS = 3_600.0
"""After a clock jump no root is removed for so long: an operator may still correct the clock."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaSettings:
    """What the authorities are like. `reset_keys` gives up authorities whose keys are lost (`--reset-keys`)."""

    trust_domain: TrustDomain
    server_id: str
    ca_ttl: timedelta = timedelta(hours=24)
    key_kind: KeyKind = KeyKind.EC_P256
    subject: x509.Name = CA_SUBJECT
    x509_ttl: timedelta = timedelta(hours=1)
    agent_ttl: timedelta = timedelta(hours=1)
    reset_keys: bool = False


class Authorities:
    """Owns this server's signing authorities and hands out the issuer. Belongs to the event loop."""

    def __init__(
        self,
        store: Store,
        keys: KeyManager,
        clock: Clock,
        audit: AuditLog,
        settings: CaSettings,
        entropy: Callable[[int], bytes],
    ) -> None:
        self._store, self._keys, self._clock, self._audit = store, keys, clock, audit
        self._settings, self._entropy = settings, entropy
        self._offload = Offload("keys", 1)
        self._busy = asyncio.Lock()
        self._seen: dict[str, float] = {}  # authority id -> monotonic time since when it is known to be published
        self._looked: tuple[float, float] | None = None  # wall and monotonic time of the last tick
        self._no_pruning_until = 0.0
        ttls = {
            Profile.WORKLOAD: int(settings.x509_ttl.total_seconds()),
            Profile.SERVER: int(settings.x509_ttl.total_seconds()),
            Profile.AGENT: int(settings.agent_ttl.total_seconds()),
        }
        self._issuer = Issuer(store=store, clock=clock, entropy=entropy, default_ttls=ttls)
        self.last_error: IdentityError | None = None
        """Why the last tick failed; None when it succeeded. For health."""

    @property
    def issuer(self) -> Issuer:
        """Signs leaves with whatever authority is active; the same object for the process's life."""
        return self._issuer

    @property
    def active(self) -> Authority | None:
        """The authority that signs now."""
        return self._issuer.signer.authority if self._issuer.signer is not None else None

    async def start(self) -> None:
        """Replay the journal, match it with the keys, and see that an authority is active.

        Raises:
            CorruptState: a persistent key of an authority in force is missing or another one.
            Unavailable: the database or the key store cannot be used now.
        """
        self._warn_of_short_life()
        async with self._busy:
            self._look_at_clock()
            server = self._settings.server_id
            slots = Slots.of(await self._store.read(lambda uow: uow.authorities.of_server(server)))
            for one in self._lost(slots):
                await self._change(Retire(one.authority_id), one)
                log.warning("authority retired: its key is gone", extra={"facts": _facts(one)})
            try:
                await self._advance()
            except Unavailable as error:  # a rotation that is due can wait as long as somebody signs (R11)
                if self._issuer.signer is None:
                    raise
                self.last_error = error
                log.warning("the next signing authority could not be prepared; trying again", exc_info=error)
        if self._issuer.signer is None:
            raise Unavailable("no signing authority could be activated; see the log, then start again")

    async def tick(self) -> None:
        """Do what is due: prepare, activate, retire, prune. Call at least every 10 seconds.

        A failure is logged and kept in `last_error`; the signer in force goes on signing and the next tick tries again.
        """
        async with self._busy:
            self._look_at_clock()
            try:
                await self._advance()
                await self._prune()
            except IdentityError as error:
                self.last_error = error
                log.warning("the signing authorities could not be looked after; trying again", exc_info=error)
            else:
                self.last_error = None

    def _lost(self, slots: Slots) -> tuple[Authority, ...]:
        """Authorities in force without their key, if they may be given up."""
        lost = tuple(one for one in slots if one.status is not Status.OLD and self._signer_of(one) is None)
        if lost and self._keys.persistent and not self._settings.reset_keys:
            raise CorruptState(
                f"{self._keys.location}: the key of the {lost[0].status.value} signing authority "
                f"{lost[0].authority_id} (slot {lost[0].key_slot}) is missing or another one. Restore the file from a "
                "backup, or give the authority up and make a new one with `identity-server run --reset-keys`",
                authorities=[one.authority_id for one in lost],
            )
        return lost

    async def _advance(self) -> None:
        """Take steps until nothing is due, the signer following the journal after each."""
        for _ in range(MAX_STEPS):
            slots, bundle = self._view()
            self._follow(slots, bundle)
            step = next_step(slots, self._now(), bundle=bundle, waited=self._waited(slots.prepared))
            if step.do is Do.NOTHING:
                return
            log.info("authority: %s", step.do.value, extra={"facts": {"because": step.why, **_facts(step.authority)}})
            await self._take(step, slots)
        raise Unavailable("the state in memory does not follow the database's authorities; trying again")

    async def _take(self, step: Step, slots: Slots) -> None:
        if step.do is Do.PREPARE:
            await self._prepare(slots)
        elif step.authority is not None and step.do is Do.ACTIVATE:
            waited = self._waited(step.authority)
            await self._change(Activate(step.authority.authority_id, frozenset(), waited), step.authority)
        elif step.authority is not None:
            await self._change(Retire(step.authority.authority_id), step.authority)

    async def _prepare(self, slots: Slots) -> None:
        server = self._settings.server_id
        # The database is asked once more: the slot's key is about to be replaced, so no authority in force may own it.
        journal = Slots.of(await self._store.read(lambda uow: uow.authorities.of_server(server)))
        slot = slots.free
        holder = journal[slot]
        if journal.prepared is not None or (holder is not None and holder.status is not Status.OLD):
            raise Unavailable("the state in memory is behind the database; trying again")
        now = self._now()
        authority = await self._offload(self._make, slot, now, draw_serial(self._entropy))
        await self._change(Prepare(authority), authority)

    def _make(self, slot: SlotName, now: int, serial: int) -> Authority:
        """A new key in `slot` and its self-signed certificate. On the key thread: RSA keys and disks take their time."""
        settings = self._settings
        name = key_slot("x509", slot)
        public = self._keys.generate(name, settings.key_kind)
        signer = self._keys.signer(name)
        if signer is None:
            raise Internal("the key manager lost a key it just made", slot=name)
        lifetime = int(settings.ca_ttl.total_seconds())
        plan = plan_ca(
            settings.trust_domain, public, lifetime=lifetime, now=now, serial=serial, subject=settings.subject
        )
        return Authority(
            authority_id=plan.key_id.hex(),
            server_id=settings.server_id,
            slot=slot,
            status=Status.PREPARED,
            certificate=sign(prepare(plan), signer),
            issued_at=now,
            not_after=plan.not_after,
            published_at=now,
        )

    async def _change(self, command: Command, about: Authority) -> None:
        """Audit, then decide and write in one transaction, then let the signer follow."""
        self._record(type(command).__name__.lower(), about)
        now, settings = self._now(), self._settings
        await self._store.execute(lambda uow: _execute(uow, settings.server_id, settings.trust_domain, command, now))
        self._follow(*self._view())

    async def _prune(self) -> None:
        """Remove roots and journal rows a day after they expired; only what has expired, of whichever server (R31)."""
        if self._clock.monotonic() < self._no_pruning_until:
            return
        now, settings = self._now(), self._settings
        state = self._store.state.value
        slots = Slots.of(state.authorities)
        gone = expired_authorities(slots, now)
        roots = expired_roots(state.bundles.own, now, keep=_in_force(slots)) if state.bundles is not None else ()
        if not gone and not roots:
            return
        for one in gone:
            self._record("forget", one)
        removed = await self._store.execute(lambda uow: _prune(uow, settings.server_id, settings.trust_domain, now))
        log.info("expired roots left the bundle", extra={"facts": {"authority_ids": removed}})
        for one in gone:
            if self._signer_of(one) is not None:
                await self._offload(self._keys.delete, one.key_slot)

    def _follow(self, slots: Slots, bundle: frozenset[str]) -> None:
        """Make the signer the journal's active authority, if its root stands in the stored bundle; else nobody signs."""
        active, signer = slots.active, self._issuer.signer
        if active is None or active.authority_id not in bundle:
            if signer is not None:
                log.error(
                    "the active authority left the journal or the bundle; it signs no more",
                    extra={"facts": _facts(signer.authority)},
                )
            self._issuer.signer = None
        elif signer is None or signer.authority != active:
            self._issuer.signer = fresh = self._signer_of(active)
            if fresh is None:
                log.error("the key of the active authority is gone; nothing is signed", extra={"facts": _facts(active)})
            else:
                log.info("authority signs from now on", extra={"facts": _facts(active)})

    def _signer_of(self, authority: Authority) -> Signer | None:
        """The authority with its key, or None if the slot is empty or holds another key."""
        key = self._keys.signer(authority.key_slot)
        if key is None:
            return None
        try:
            return Signer.of(authority, key)
        except CorruptState:
            return None

    def _view(self) -> tuple[Slots, frozenset[str]]:
        """The slots and the ids in the stored bundle, as of the latest state."""
        state = self._store.state.value
        own = state.bundles.own if state.bundles is not None else None
        return Slots.of(state.authorities), _ids(own)

    def _waited(self, prepared: Authority | None) -> float:
        """How long a prepared authority has been published, by the monotonic clock."""
        if prepared is None:
            self._seen.clear()
            return 0.0
        now = self._clock.monotonic()
        return now - self._seen.setdefault(prepared.authority_id, now)

    def _look_at_clock(self) -> None:
        wall, monotonic = self._clock.now().timestamp(), self._clock.monotonic()
        if self._looked is not None:
            jump = clock_jump(wall - self._looked[0], monotonic - self._looked[1])
            if jump:
                self._no_pruning_until = monotonic + PRUNE_PAUSE_SECONDS
                log.warning(
                    "clock jump: the wall clock moved by %+.0f s", jump, extra={"facts": {"seconds": round(jump)}}
                )
        self._looked = wall, monotonic

    def _warn_of_short_life(self) -> None:
        whole = longest_whole_ttl(int(self._settings.ca_ttl.total_seconds()))
        if max(self._settings.x509_ttl, self._settings.agent_ttl).total_seconds() > whole:
            log.warning(
                "SVIDs may end sooner than their TTL: ca.ttl is less than six times as long",
                extra={"facts": {"longest_whole_ttl": whole}},
            )

    def _record(self, change: str, about: Authority) -> None:
        event = AuthorityChanged(
            change=change,
            authority_id=about.authority_id,
            not_after=about.not_after,
            slot=about.key_slot,
            server_id=about.server_id,
        )
        self._audit.record(event)

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


def _execute(
    uow: UnitOfWork, server_id: str, trust_domain: TrustDomain, command: Command, now: int
) -> tuple[Event, ...]:
    """Decide by what is stored, then write the events; runs on the store's writer thread."""
    slots = Slots.of(uow.authorities.of_server(server_id))
    bundle = uow.bundles.get(trust_domain)
    if isinstance(command, Activate):
        command = Activate(command.authority_id, _ids(bundle), command.waited)
    events = decide(slots, command, now)
    for event in events:
        if isinstance(event, Forgotten):
            uow.authorities.remove(event.authority.authority_id)
            continue
        if isinstance(event, Prepared):
            if event.replaced is not None:
                uow.authorities.remove(event.replaced.authority_id)
            stored = bundle if bundle is not None else TrustBundle(trust_domain)
            uow.bundles.put(stored.with_x509_authority(event.authority.certificate))
        uow.authorities.put(event.authority)
    return events


def _prune(uow: UnitOfWork, server_id: str, trust_domain: TrustDomain, now: int) -> tuple[str, ...]:
    slots = Slots.of(uow.authorities.of_server(server_id))
    bundle = uow.bundles.get(trust_domain)
    roots = expired_roots(bundle, now, keep=_in_force(slots)) if bundle is not None else ()
    for one in expired_authorities(slots, now):
        for event in decide(slots, Forget(one.authority_id), now):
            uow.authorities.remove(event.authority.authority_id)
    if bundle is not None and roots:
        for key_id in roots:
            bundle = bundle.without_x509_authority(key_id)
        uow.bundles.put(bundle)
    return roots


def _ids(bundle: TrustBundle | None) -> frozenset[str]:
    return frozenset(root.key_id for root in bundle.x509_authorities) if bundle is not None else frozenset()


def _in_force(slots: Slots) -> frozenset[str]:
    return frozenset(one.authority_id for one in slots if one.status is not Status.OLD)


def _facts(authority: Authority | None) -> dict[str, object]:
    if authority is None:
        return {}
    return {"authority_id": authority.authority_id, "slot": authority.key_slot, "not_after": authority.not_after}
