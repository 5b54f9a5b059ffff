"""Use-cases: attest a node and renew its agent's SVID.

An attestation is a dialogue with a verifier, then one command: the verdict, the ban check, the redeemed token, the
agent's record and the alias entry stand or fall together (architecture A18). The SVID is signed before that command,
because the record holds its serial, and leaves only if the command succeeded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attestors.api import Attested, Challenge, Dialogue, NodeVerifier, PlacedNodeVerifier, advance
from identity_server.domain import agents, join_tokens
from identity_server.domain.access import Caller
from identity_server.domain.agents import AttestedAgent
from identity_server.domain.audit import ATTESTED, DONE, AgentAttested, SvidIssued
from identity_server.ports import AuditLog, Store, UnitOfWork
from identity_server.services.issuer import IssuedX509, Issuer
from spiffe_core.clock import Clock
from spiffe_core.crypto.csr import Csr, parse_csr
from spiffe_core.entry import RegistrationEntry, similarity
from spiffe_core.errors import (
    AgentRefused,
    Forbidden,
    Internal,
    InvalidCsr,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Refusal,
)
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.tracing import span
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

THREADS = 16
"""For each verifier that may wait for somebody."""
MAX_CHALLENGES = 16
"""A verifier that asks more often than this is broken."""
MAX_PAYLOAD_BYTES = 1024 * 1024
MAX_TYPE_BYTES = 128
BANNED = "failed to attest: agent is banned"


@dataclass(frozen=True, slots=True)
class Joined:
    """What an agent receives: its SVID, and whether it may attest again with the same evidence."""

    svid: IssuedX509
    reattestable: bool


class Attestation:
    """One node's attempt: step it until it is attested, then hand it to `AttestAgents.join`."""

    def __init__(self, verifier: NodeVerifier, payload: bytes, csr: Csr, offload: Offload, dialogue: Dialogue) -> None:
        self.verifier = verifier
        self.csr = csr
        self.token_digest = join_tokens.digest_of(payload) if getattr(verifier, "redeems_token", False) else b""
        self.verdict: Attested | None = None
        self._dialogue = dialogue
        self._offload = offload
        self._challenges = 0

    async def step(self, answer: bytes | None = None) -> Challenge | None:
        """The next challenge, or None when the node is attested. A verifier that may block runs on its own thread."""
        with span("attest.node"):
            if getattr(self.verifier, "blocking", True):
                outcome = await self._offload(advance, self._dialogue, answer)
            else:
                outcome = advance(self._dialogue, answer)
        if isinstance(outcome, Attested):
            self.verdict = outcome
            return None
        self._challenges += 1
        if self._challenges > MAX_CHALLENGES:
            self.close()
            raise Internal("the node attestor asks too many questions", attestor=self.verifier.name)
        return outcome

    def close(self) -> None:
        """End the dialogue; the verifier's `finally` blocks run."""
        with contextlib.suppress(ValueError):  # the caller left while a step is at work: it ends with that step
            self._dialogue.close()


class AttestAgents:
    """Makes agents of nodes that prove themselves, and renews their SVIDs. Belongs to the event loop.

    Each verifier has threads of its own: one that waits for somebody else (a cluster's API server) holds up no other.
    """

    def __init__(
        self,
        *,
        store: Store,
        issuer: Issuer,
        verifiers: Mapping[str, NodeVerifier],
        clock: Clock,
        audit: AuditLog,
        trust_domain: TrustDomain,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._issuer = issuer
        self._verifiers = dict(verifiers)
        self._placed = {kind: one for kind, one in verifiers.items() if isinstance(one, PlacedNodeVerifier)}
        self._threads: dict[str, Offload] = {}
        self._clock = clock
        self._audit = audit
        self._trust_domain = trust_domain
        self._new_id = new_id

    def begin(self, caller: Caller, attestation_type: str, payload: bytes, csr_der: bytes) -> Attestation:
        """Check what a node sent first and start the dialogue. Every field of it is a stranger's."""
        if not attestation_type:
            raise InvalidRequest("malformed param: missing attestation data type", field="params.data.type")
        if not payload:
            raise InvalidRequest("malformed param: missing attestation data payload", field="params.data.payload")
        if not csr_der:
            raise InvalidRequest("malformed param: missing CSR", field="params.params.csr")
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise InvalidRequest(
                f"malformed param: payload has more than {MAX_PAYLOAD_BYTES} bytes", field="params.data.payload"
            )
        verifier = self._verifiers.get(attestation_type)
        if verifier is None:
            known = ", ".join(sorted(self._verifiers))
            shown = attestation_type[:MAX_TYPE_BYTES]
            raise PreconditionFailed(
                f'error getting node attestor: could not find node attestor type "{shown}"; this server has: {known}'
            )
        csr = self._csr(csr_der, "malformed param: ")
        threads = self._threads.setdefault(attestation_type, Offload(f"attest-{attestation_type}", THREADS))
        placed = self._placed.get(attestation_type)
        dialogue = (
            verifier.verify(payload, csr.key_digest)
            if placed is None
            else placed.verify_from(payload, csr.key_digest, caller.address)
        )
        return Attestation(verifier, payload, csr, threads, dialogue)

    async def join(self, caller: Caller, attestation: Attestation) -> Joined:
        """Sign the attested node's SVID and record the agent; the token is redeemed in the same transaction."""
        verdict = attestation.verdict
        assert verdict is not None, "step() until the node is attested"
        kind = attestation.verifier.name
        try:
            joined = await self._join(attestation, verdict)
        except BaseException as error:  # also of a node that went away: what was stored for it stays
            # the ID of a node that came with a token holds the token, which may still be good
            path = "" if attestation.token_digest else verdict.agent_path
            self.refused(caller, kind, error, path)
            raise
        event = AgentAttested(
            attestation_type=kind,
            actor=caller.actor,
            spiffe_id=str(joined.svid.spiffe_id),
            serial=joined.svid.serial,
            outcome=ATTESTED,
        )
        self._audit.record(event)
        return joined

    def refused(self, caller: Caller, attestation_type: str, error: BaseException, agent_path: str = "") -> None:
        """Record that a node's attempt came to nothing, or was interrupted. Every field may be a stranger's."""
        event = AgentAttested(
            attestation_type=attestation_type[:MAX_TYPE_BYTES],
            actor=caller.actor,
            spiffe_id=f"spiffe://{self._trust_domain}{agent_path}" if agent_path else "",
        )
        self._audit.record(event.ended(error))

    async def _join(self, attestation: Attestation, verdict: Attested) -> Joined:
        agent_id = self._agent_id(verdict)
        now = int(self._clock.now().timestamp())
        key = attestation.csr.key_digest
        digest = attestation.token_digest
        await self._store.read(lambda uow: _may_join(uow, agent_id.path, digest, key, now))
        svid = self._sign(agent_id, attestation.csr)
        alias_id = self._new_id()

        def command(uow: UnitOfWork) -> None:
            before, token = _may_join(uow, agent_id.path, digest, key, now)
            alias = _alias_entry(uow, alias_id, agent_id, token, now)
            if token is not None and not uow.join_tokens.redeem(digest, key, now, join_tokens.REPEAT_SECONDS):
                raise InvalidRequest(join_tokens.UNKNOWN_TOKEN)
            uow.agents.put(
                agents.attested(
                    before,
                    spiffe_id=agent_id,
                    attestation_type=attestation.verifier.name,
                    serial=svid.serial,
                    expires_at=svid.not_after,
                    selectors=verdict.selectors,
                    can_reattest=verdict.may_reattest,
                )
            )
            if alias is not None:
                uow.entries.add([alias])

        await self._store.execute(command)
        return Joined(svid, verdict.may_reattest)

    async def renew(self, caller: Caller, csr_der: bytes) -> IssuedX509:
        """Sign the calling agent's next SVID; its serial is pending until the agent first uses it."""
        agent_id = caller.spiffe_id
        assert agent_id is not None, "the access table lets only agents in here"
        if not csr_der:
            raise InvalidRequest("missing CSR", field="params.csr")
        csr = self._csr(csr_der, "failed to parse CSR: ")
        await self._store.read(lambda uow: _may_renew(uow, agent_id.path, caller.serial))
        svid = self._sign(agent_id, csr)

        def command(uow: UnitOfWork) -> None:
            before = _may_renew(uow, agent_id.path, caller.serial)
            uow.agents.put(agents.renewed(before, svid.serial, svid.not_after))

        await self._store.execute(command)
        self._audit.record(
            SvidIssued(
                profile="agent",
                spiffe_id=str(agent_id),
                serial=svid.serial,
                not_after=svid.not_after,
                actor=caller.actor,
                outcome=DONE,
            )
        )
        return svid

    def _sign(self, agent_id: SpiffeId, csr: Csr) -> IssuedX509:
        with span("sign.x509_svid"):
            return self._issuer.issue("agent", agent_id, csr.public_key)

    def _csr(self, der: bytes, prefix: str) -> Csr:
        try:
            return parse_csr(der)
        except InvalidCsr as error:
            raise InvalidCsr(f"{prefix}{error.public}", field="params.params.csr") from None

    def _agent_id(self, verdict: Attested) -> SpiffeId:
        """The ID a verifier gave, held to the rules: a plugin cannot name a server or a workload (S32, S33)."""
        agent_id = SpiffeId.parse(f"spiffe://{self._trust_domain}{verdict.agent_path}", field="agent_path")
        if not agent_id.is_under(agents.AGENT_PREFIX) or agent_id.path == agents.AGENT_PREFIX:
            raise Internal("the node attestor named something that is not an agent", agent_id=str(agent_id))
        return agent_id


def _may_join(
    uow: UnitOfWork, path: str, digest: bytes, key: bytes, now: int
) -> tuple[AttestedAgent | None, join_tokens.JoinToken | None]:
    """Refuse a banned agent and a token that cannot be redeemed; reads only."""
    token = join_tokens.check_redeemable(uow.join_tokens.get(digest), key, now) if digest else None
    before = uow.agents.get(path)
    if before is not None and before.banned:
        raise Forbidden(BANNED)
    if token is not None and token.redeemed_at and before is None:
        raise InvalidRequest(join_tokens.UNKNOWN_TOKEN)  # evicted since: a spent token does not bring it back
    return before, token


def _may_renew(uow: UnitOfWork, path: str, serial: str) -> AttestedAgent:
    """The agent's record if it may renew with the certificate it called with; reads only."""
    agent = uow.agents.get(path)
    if agent is None:
        raise NotFound("agent not found")
    if agent.banned:
        raise AgentRefused(Refusal.AGENT_BANNED)
    if serial not in {agent.serial, agent.new_serial}:
        raise AgentRefused(Refusal.AGENT_NOT_ACTIVE)
    if agent.can_reattest:
        raise AgentRefused(Refusal.AGENT_MUST_REATTEST)
    return agents.promoted(agent) if serial == agent.new_serial else agent


def _alias_entry(
    uow: UnitOfWork, entry_id: str, agent_id: SpiffeId, token: join_tokens.JoinToken | None, now: int
) -> RegistrationEntry | None:
    """The entry that gives the agent the SPIFFE ID asked for with its token, unless it stands already."""
    if token is None or not token.alias_path:
        return None
    alias = RegistrationEntry(
        id=entry_id,
        spiffe_id=SpiffeId(agent_id.trust_domain, token.alias_path),
        parent_id=agent_id,
        selectors=frozenset({Selector("spiffe_id", str(agent_id))}),
        created_at=now,
    )
    return None if similarity(alias) in uow.entries.similar([alias]) else alias
