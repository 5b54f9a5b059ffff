"""Runs the session: joins, renews, attests anew, and forgets everything when banned."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from node_agent.domain.events import (
    AttemptFailed,
    CredentialChanged,
    Event,
    Forget,
    Join,
    Obtained,
    Refused,
    Renew,
    Replace,
    Say,
    ServerProven,
    StillGood,
    Tick,
    Trouble,
)
from node_agent.domain.events import ServerUnproven as UnprovenSeen
from node_agent.domain.events import TurnedAway as TurnedAwaySeen
from node_agent.domain.issued import Issued, SoundAuthorities, authority_ids, check_issued
from node_agent.domain.node_state import NodeState, believing_both
from node_agent.domain.session import step
from node_agent.domain.standing import Phase, Session
from node_agent.ports import Credentials, Enrolment, FirstContact, ServerUnproven, TurnedAway
from node_agent.services.node_record import NodeRecord
from node_agent.services.steady_time import SteadyTime
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, PrivateKey, PrivateKeyDer, from_pkcs8, generate, to_pkcs8
from spiffe_core.errors import (
    AgentRefused,
    ConfigError,
    Forbidden,
    IdentityError,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Reason,
    Refusal,
    Unavailable,
    Unbelieved,
    VerificationFailed,
)
from spiffe_core.lifetime import renew_at
from spiffe_core.runtime.supervise import spawn
from spiffe_core.spiffe_id import SpiffeId

log = logging.getLogger(__name__)

AGENT_PATH = "/spire/agent"
TAINTED_RENEWAL = timedelta(seconds=5)
"""How long an SVID is used that came from an authority that is tainted already."""
_UNSTORED_SHARE = 0.1
"""The share of its life from which on a new SVID is used even though it could not be stored."""


@dataclass(frozen=True, slots=True)
class _Fresh:
    """A new own SVID that proved itself, and what goes with it."""

    issued: Issued
    reattestable: bool
    bundle: TrustBundle


class Membership:
    """The agent's own identity. Belongs to the event loop's thread.

    `session` is where the agent stands; `on_change` holds what is called when that or its SVID changed. `draw`
    gives a number in [-1, 1] for jitter. `on_ban` is called at once, before anything is awaited, when the server says
    that this agent is banned. `patience` is how long a server may stay unproven before the agent bootstraps again by
    what `first_contact` reads; None for ever.
    """

    def __init__(
        self,
        *,
        node: NodeRecord,
        enrolment: Enrolment,
        credentials: Credentials,
        first_contact: FirstContact,
        clock: Clock,
        steady: SteadyTime,
        draw: Callable[[], float],
        on_ban: Callable[[], None],
        patience: timedelta | None = None,
    ) -> None:
        self._node = node
        self._enrolment = enrolment
        self._credentials = credentials
        self._first_contact = first_contact
        self._clock = clock
        self._steady = steady
        self._draw = draw
        self._on_ban = on_ban
        self._todo: list[Join | Renew] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_erase = False
        self._wake = asyncio.Event()
        self._tried = ""
        self.session = Session(patience=None if patience is None else patience.total_seconds())
        self.on_change: list[Callable[[], None]] = []
        self._restore(node.state)

    def refused(self, refusal: Refusal, generation: int) -> None:
        """Another call with the own SVID (of `generation`) was refused."""
        self._feed(Refused(refusal, generation))

    def answered(self) -> None:
        """The server was reached with the own SVID: it is the one that the believed bundle proves."""
        if self.session.doubt_since is not None or self.session.turned_away_since is not None:
            self._feed(ServerProven())

    def failed(self, error: IdentityError, generation: int) -> None:
        """Another call with the own SVID (of `generation`) did not work."""
        if isinstance(error, AgentRefused):
            self._feed(Refused(error.refusal, generation))
        elif generation != self.session.generation:
            return
        elif isinstance(error, ServerUnproven):
            self._feed(UnprovenSeen(error.public))
        elif isinstance(error, TurnedAway):
            self._feed(TurnedAwaySeen(error.public, self._credentials.advice))

    async def accept_bundle(self, bundle: TrustBundle) -> None:
        """Believe a newer bundle of the own trust domain, read over an authenticated connection.

        Raises:
            VerificationFailed: it holds no authority; what is believed stays.
        """
        _require_authorities(bundle)
        if bundle == self._node.state.bundle:
            return
        await self._node.use_then_store(bundle=bundle)
        svid = self._node.state.svid
        if svid is not None and self._depends_on_bad_authority(bundle):
            self._feed(Replace("the authority behind this agent's SVID is tainted or gone: replacing the SVID"))

    async def run(self) -> None:
        """Live until cancelled."""
        while True:
            await self.advance()
            session = self.session
            await self._steady.wait(None if session.busy else session.wake_at, self._wake)

    async def advance(self) -> None:
        """Do what is due now."""
        await self._node.store_if_unsaved()
        fingerprint = self._credentials.fingerprint()
        if fingerprint and fingerprint != self._tried:
            self._feed(CredentialChanged())
        self._look_at_the_clock()
        self._feed(Tick())
        while self._todo:
            command = self._todo.pop(0)
            await self._attempt(command)
        if self._to_erase:
            await self._erase()

    def _feed(self, event: Event) -> None:
        session, commands = step(self.session, event, self._steady.now())
        before, self.session = self.session, session
        for command in commands:
            match command:
                case Say():
                    log.log(logging.ERROR if command.grave else logging.WARNING, "%s", command.text)
                case Forget():
                    self._todo.clear()
                    self._node.forget()
                    self._on_ban()
                    self._to_erase = True
                    spawn(self._erase(), "erase the banned agent's state", self._tasks)
                case Join() | Renew():
                    self._todo.append(command)
        if commands:
            self._wake.set()
        if _standing(before) != _standing(session):
            for listener in self.on_change:
                listener()

    async def _erase(self) -> None:
        """Delete the stored keys; tried again until it works."""
        try:
            await self._node.erase()
            self._to_erase = False
        except IdentityError as error:
            text = "the banned agent's stored keys could not be deleted: %s"
            log.error(text, error.public)  # noqa: TRY400  # the text says it all

    async def _attempt(self, command: Join | Renew) -> None:
        try:
            await (self._join(anew=command.anew) if isinstance(command, Join) else self._renew())
        except AgentRefused as error:
            self._end(Trouble.PASSING, error.public, error.refusal)
        except NotFound as error:
            self._end(Trouble.PASSING, error.public, Refusal.AGENT_NOT_ATTESTED)
        except (InvalidRequest, Forbidden, PreconditionFailed) as error:
            # RenewAgent needs no credential: a new one would not help
            self._end(Trouble.PASSING if isinstance(command, Renew) else Trouble.CREDENTIAL, error.public)
        except ServerUnproven as error:
            self._end(Trouble.UNPROVEN, error.public)
        except TurnedAway as error:
            self._end(Trouble.TURNED_AWAY, error.public)
        except (Unbelieved, VerificationFailed) as error:
            self._end(Trouble.PASSING, error.public, reason=error.reason)
        except IdentityError as error:
            self._end(Trouble.PASSING, error.public)

    def _end(self, trouble: Trouble, why: str, refusal: Refusal | None = None, *, reason: Reason | None = None) -> None:
        doing = "renew the agent's SVID" if self.session.is_member else "join the trust domain"
        text = f"could not {doing}: {why}"
        one_use = self._credentials.one_use
        advice = self._credentials.advice
        self._feed(AttemptFailed(trouble, text, self._draw(), refusal, advice, one_use, reason))

    async def _join(self, *, anew: bool) -> None:
        self._tried = self._credentials.fingerprint()
        prover = self._credentials.prover()
        key_der = await self._attestation_key()
        key = from_pkcs8(key_der)
        believed = self._node.state.bundle
        if anew or self._node.state.svid is None:
            self._node.anchors = believing_both(believed, await self._configured())
        try:
            enrolled = await self._enrolment.attest(prover, build_csr(key, spiffe_id=None))
        finally:
            anchors, self._node.anchors = self._node.anchors, None
        bundle = enrolled.bundle or anchors or believed
        if bundle is None:
            raise Unavailable("the server's trust bundle could not be read after attestation")
        _require_authorities(bundle)
        expected = f"{self._node.state.trust_domain.id}{AGENT_PATH}/..."
        issued = self._check(enrolled.chain, key_der, self._is_agent_id, expected, bundle)
        await self._use(_Fresh(issued, enrolled.reattestable, bundle), must_store=False)
        log.info("joined the trust domain", extra={"facts": {"spiffe_id": str(issued.svid.spiffe_id)}})

    async def _configured(self) -> TrustBundle | None:
        try:
            return await self._first_contact.bundle()
        except ConfigError as error:  # not the credential's fault
            raise Unavailable(error.public) from error

    async def _attestation_key(self) -> PrivateKeyDer:
        """The key to attest with.

        For evidence that is good for once it is on disk before it is sent (architecture A18).
        """
        key = self._node.state.pending_key
        if key is None:
            key = to_pkcs8(generate(KeyKind.EC_P256))
            if self._credentials.one_use:
                await self._node.store_then_use(pending_key=key)
            else:
                await self._node.use_then_store(pending_key=key)
        return key

    async def _renew(self) -> None:
        present = self._node.state
        assert present.svid is not None
        assert present.bundle is not None
        own_id = present.svid.spiffe_id
        key: PrivateKey = generate(KeyKind.EC_P256)
        chain = await self._enrolment.renew(build_csr(key, spiffe_id=own_id))
        bundle = self._node.state.bundle or present.bundle
        issued = self._check(chain, to_pkcs8(key), lambda found: found == own_id, str(own_id), bundle)
        session = self.session
        life = (present.svid.not_after - present.svid.not_before).total_seconds()
        last_chance = session.expires_at - self._steady.now() < life * _UNSTORED_SHARE
        await self._use(_Fresh(issued, session.reattestable, bundle), must_store=not last_chance)
        log.info("renewed the agent's SVID", extra={"facts": {"expires": issued.svid.not_after.isoformat()}})

    def _check(
        self,
        chain: tuple[bytes, ...],
        key: PrivateKeyDer,
        expected: Callable[[SpiffeId], bool],
        expected_text: str,
        bundle: TrustBundle,
    ) -> Issued:
        try:
            return check_issued(
                chain, key=key, expected=expected, expected_text=expected_text, bundle=bundle, now=self._clock.now()
            )
        except InvalidRequest as error:  # a broken certificate is the server's fault, not the credential's
            raise Unavailable(f"the server's answer is refused: {error.public}") from error

    def _is_agent_id(self, spiffe_id: SpiffeId) -> bool:
        return spiffe_id.member_of(self._node.state.trust_domain) and spiffe_id.is_under(AGENT_PATH)

    async def _use(self, fresh: _Fresh, *, must_store: bool) -> None:
        """Store the new SVID, then present it: a crash in between leaves the old one, which is good still (R3)."""
        svid = fresh.issued.svid
        now = self._clock.now()
        renewal = renew_at(now, svid.not_after, jitter=self._draw())
        if SoundAuthorities.of(fresh.bundle).tainted_ids & fresh.issued.authority_ids:
            renewal = min(renewal, now + TAINTED_RENEWAL)  # tainted while the answer was under way
        changes = {
            "svid": svid,
            "renew_at": renewal,
            "reattestable": fresh.reattestable,
            "pending_key": None,
            "bundle": fresh.bundle,
        }
        if must_store:
            await self._node.store_then_use(**changes)
        else:
            await self._node.use_then_store(**changes)
        self._feed(Obtained(self._steady.at(renewal), self._steady.at(svid.not_after), fresh.reattestable))
        await self._enrolment.identity_changed()

    def _restore(self, state: NodeState) -> None:
        """Go on with the SVID of the life before, if it is good still: no new attestation (R43)."""
        now = self._clock.now()
        if state.svid is None or state.bundle is None or state.svid.not_after <= now + timedelta(seconds=1):
            return
        renewal = min(state.renew_at or now, _half_way(now, state.svid.not_after))
        expires_at = self._steady.at(state.svid.not_after)
        self._feed(Obtained(self._steady.at(renewal), expires_at, state.reattestable, fresh=False))
        log.info("restored the agent's SVID", extra={"facts": {"spiffe_id": str(state.svid.spiffe_id)}})

    def _look_at_the_clock(self) -> None:
        """Take the own SVID up again that counted as ended when the wall clock was further ahead than it is now."""
        session, svid = self.session, self._node.state.svid
        over = session.lapsed or (session.is_member and self._steady.now() >= session.expires_at)
        now = self._clock.now()
        if not over or svid is None or svid.not_after <= now + timedelta(seconds=1):
            return
        renewal = min(self._node.state.renew_at or now, _half_way(now, svid.not_after))
        self._feed(StillGood(self._steady.at(renewal), self._steady.at(svid.not_after)))

    def _depends_on_bad_authority(self, bundle: TrustBundle) -> bool:
        svid = self._node.state.svid
        if svid is None:
            return False
        ids = authority_ids(svid.chain)
        tainted = {one.key_id for one in bundle.x509_authorities if one.tainted}
        known = {one.key_id for one in bundle.x509_authorities}
        return bool(ids & tainted) or not ids & known


def _standing(session: Session) -> tuple[int, Phase, bool]:
    """What others are told of when it changes."""
    return session.generation, session.phase, session.is_known


def _half_way(now: datetime, end: datetime) -> datetime:
    """The latest a restored SVID is renewed, if its stored plan says later (the clock may have changed meanwhile)."""
    return now + (end - now) / 2


def _require_authorities(bundle: TrustBundle) -> None:
    if not bundle.x509_authorities:
        text = f"the server's bundle of {bundle.trust_domain} holds no X.509 authority"
        raise VerificationFailed(text, Reason.EMPTY_BUNDLE)
