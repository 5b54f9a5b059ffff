"""An identity server in memory: speaks the agent's own ports, does as it is told, and misbehaves on request."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

from node_agent.domain.entry_cache import Listing, stamp_of
from node_agent.ports import Enrolled
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.crypto.csr import parse_csr
from spiffe_core.errors import AgentRefused, InvalidRequest, NotFound, PreconditionFailed, Refusal
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA, certify
from tests.doubles.simulated_tokens import SimulatedTokens

AGENT = "spiffe://example.org/spire/agent/join_token/t1"
TOKEN_USED = "failed to attest: join token does not exist or has already been used"


class SimulatedServer(SimulatedTokens):
    """Implements `Enrolment` and `IdentityServer`.

    `troubles` are raised first, one per call; `troubles_of` holds more for a single method. `spoil_next` spoils the next
    certificates (keywords of `tests.authority.certify`). `calls` lists what was asked.
    """

    def __init__(self, clock, *, agent_ttl=3600, ttl=3600, reattestable=False):
        self.clock = clock
        self.agent_ttl = agent_ttl
        self.ttl = ttl
        self.reattestable = reattestable
        self.trust_domain = TrustDomain("example.org")
        self.ca = self._new_ca()
        self.authorities = {self.ca.der: False}
        self.sequence = 1
        self.entries = {}
        self.federated = {}
        self.tokens = {"t1": None}
        self.banned = False
        self.evicted = False
        self.refusal = None
        self.current_generation = 0
        self.calls = []
        self.troubles = deque()
        self.troubles_of = {}
        self.spoil_next = deque()
        self.gate = None
        self.issued = []
        self.status = None
        self.init_tokens()

    # What a test does to it

    def publish(self, *entries):
        for entry in entries:
            self.entries[entry.id] = entry

    def remove(self, *ids):
        for entry_id in ids:
            del self.entries[entry_id]

    def rotate(self):
        """A new authority signs from now on; the old one stays in the bundle."""
        self.ca = self._new_ca()
        self.authorities[self.ca.der] = False
        self.sequence += 1

    def taint(self, ca):
        self.authorities[ca.der] = True
        self.sequence += 1

    def drop(self, ca):
        del self.authorities[ca.der]
        self.sequence += 1

    def ban(self):
        self.banned = True

    def evict(self):
        self.evicted = True

    def bundle(self):
        roots = tuple(X509Authority(der, tainted=tainted) for der, tainted in self.authorities.items())
        jwt, wit = self.token_authorities()
        return TrustBundle(self.trust_domain, roots, jwt, wit, sequence=self.sequence, refresh_hint=300)

    # Enrolment

    async def attest(self, prover, csr):
        await self._begin("attest")
        if self.banned:
            raise PreconditionFailed("failed to attest: agent is banned")
        token = next(prover.prove()).decode()
        key = parse_csr(csr).key_digest
        if token not in self.tokens or self.tokens[token] not in {None, key}:
            raise InvalidRequest(TOKEN_USED)
        if not self.reattestable:
            self.tokens[token] = key
        self.evicted = False
        self.refusal = None
        trouble = self.troubles_of.pop("attest reply", None)
        if trouble is not None:  # the work is done, the answer is lost
            raise trouble
        return Enrolled(self._sign(csr, AGENT, self.agent_ttl), self.reattestable, self.bundle())

    async def renew(self, csr):
        await self._begin("renew", member=True)
        if self.reattestable:
            raise AgentRefused(Refusal.AGENT_MUST_REATTEST)
        return self._sign(csr, AGENT, self.agent_ttl)

    async def identity_changed(self):
        self.calls.append("identity_changed")

    # IdentityServer

    async def sync_entries(self, known):
        await self._begin("sync_entries", member=True)
        changed = tuple(entry for entry in self.entries.values() if known.get(entry.id) != stamp_of(entry))
        return Listing(frozenset(self.entries), changed)

    async def fetch_bundle(self):
        await self._begin("fetch_bundle", member=True)
        return self.bundle()

    async def fetch_federated_bundle(self, trust_domain):
        await self._begin(f"fetch_federated_bundle {trust_domain}", member=True)
        return self.federated.get(trust_domain)

    async def issue_svids(self, requests):
        self.issued.append([one.entry_id for one in requests])
        await self._begin("issue_svids", member=True)
        return [self._answer(one) for one in requests]

    async def post_status(self, version, bundle_sequence):
        await self._begin("post_status", member=True)
        self.status = (version, bundle_sequence)

    def _answer(self, request):
        entry = self.entries.get(request.entry_id)
        if entry is None:
            return NotFound("entry not found or not authorized")
        trouble = self.troubles_of.get(request.entry_id)
        if trouble is not None:
            return trouble
        return self._sign(request.csr, str(entry.spiffe_id), self.ttl)

    async def _begin(self, name, *, member=False):
        self.calls.append(name)
        if self.gate is not None:
            await self.gate.wait()
        if self.troubles:
            raise self.troubles.popleft()
        trouble = self.troubles_of.pop(name, None)
        if trouble is not None:
            raise trouble
        if not member:
            return
        if self.banned:
            raise AgentRefused(Refusal.AGENT_BANNED)
        if self.refusal is not None:
            raise AgentRefused(self.refusal)
        if self.evicted:
            raise AgentRefused(Refusal.AGENT_NOT_ATTESTED)

    def _sign(self, csr, spiffe_id, ttl):
        request = parse_csr(csr)
        profile = {"uris": (spiffe_id,), "ttl": timedelta(seconds=ttl)}
        signer = self.ca
        if self.spoil_next:
            profile |= self.spoil_next.popleft()
            signer = profile.pop("ca_of", signer)
        key = profile.pop("key", _PublicOnly(request.public_key))
        now = profile.pop("issued", self.clock.now())
        leaf = certify(key, signer=signer.key, issuer=signer.certificate, now=now, **profile)
        return (leaf, *signer.chain)

    def _new_ca(self):
        return SpiffeTestCA("example.org", now=self.clock.now())


class _PublicOnly:
    """What `certify` needs of a key it does not hold."""

    def __init__(self, public_key):
        self._public_key = public_key

    def public_key(self):
        return self._public_key
