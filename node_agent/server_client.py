"""The server, over gRPC: implements the ports `Enrolment` and `IdentityServer`.

Two dialers: one presents no certificate and serves AttestAgent and the GetBundle after it, also when attesting anew;
the other presents the agent's SVID (spire_wire section 1.3). Every call has a deadline of 30 s, every answer a bound,
and whatever the server says that cannot be read becomes an IdentityError: nothing it sends can stop the agent (R41).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from attestors.api import NodeProver
from node_agent.domain.bearings import Bearings
from node_agent.domain.entry_cache import Listing, Stamp, to_fetch
from node_agent.domain.svid_plan import LARGEST_BATCH
from node_agent.ports import Enrolled, SvidAnswer, SvidRequest, WitAnswer, WitRequest
from node_agent.server_calls import Calls, received, translated
from spiffe_core.bundle import TrustBundle
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import (
    IdentityError,
    InvalidRequest,
    Kind,
    NotFound,
    PreconditionFailed,
    Unavailable,
    Unimplemented,
)
from spiffe_core.jwt_svid import JwtSvid
from spiffe_core.runtime.offload import Offload
from spiffe_core.selectors import Selector, canonical
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.muniment.server.explain.v1 import explain_pb2
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import attestation_pb2, status_pb2, x509svid_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as bundle_types_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types_pb2
from spiffe_core.wire.convert_tokens import jwt_svid_from_proto, wit_svid_from_proto
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.exchange import END, Exchange
from spiffe_core.wire.status import kind_of

log = logging.getLogger(__name__)

IDS_PER_REQUEST = 500
MAX_ENTRIES = 500_000
MAX_CHALLENGES = 32
EXPLAIN_SECONDS = 1.0
BOOTSTRAP_BUNDLE_TRIES = 3

_AGENT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
_BUNDLE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
_ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
_EXPLAIN = explain_pb2.DESCRIPTOR.services_by_name["Explain"]
_SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]

_BUNDLE_MASK = bundle_types_pb2.BundleMask(
    x509_authorities=True, jwt_authorities=True, wit_authorities=True, refresh_hint=True, sequence_number=True
)
_ENTRY_MASK = entry_types_pb2.EntryMask(
    spiffe_id=True,
    parent_id=True,
    selectors=True,
    federates_with=True,
    admin=True,
    downstream=True,
    revision_number=True,
    store_svid=True,
    hint=True,
    additional_attributes=True,
    created_at=True,
)


class ServerClient:
    """Calls to one identity server. Belongs to the event loop's thread."""

    def __init__(self, trust_domain: TrustDomain, *, anonymous: Dialer, member: Dialer) -> None:
        self._trust_domain = trust_domain
        self._anonymous = anonymous
        self._member = member
        self.bearings = Bearings()
        self._first_calls = Calls(anonymous, self.bearings)
        self._calls = Calls(member, self.bearings)
        self._skipped: dict[str, Stamp] = {}
        self._bundle: tuple[Any, TrustBundle] | None = None
        self._proofs = Offload("prove", 1)

    @property
    def calls(self) -> Calls:
        """Calls with the agent's own SVID."""
        return self._calls

    async def start(self) -> None:
        """Open the dialers; nothing is dialled before the first call."""
        await self._anonymous.start()
        await self._member.start()

    async def close(self) -> None:
        """Close all connections."""
        await self._anonymous.close()
        await self._member.close()

    # Enrolment

    async def attest(self, prover: NodeProver, csr: bytes) -> Enrolled:
        """Prove what this node is, then read the bundle over the same connection.

        The connection is made for this attempt and ends with it: gRPC would go on dialling by itself, at moments when
        what proves the server to this attempt is believed no more.
        """
        try:
            return await self._enrol(prover, csr)
        finally:
            await self._anonymous.renew()

    async def _enrol(self, prover: NodeProver, csr: bytes) -> Enrolled:
        with translated(self._anonymous):
            result = await self._attest(prover, csr)
        chain = _chain(result.svid)
        bundle: TrustBundle | None = None
        for attempt in range(1, BOOTSTRAP_BUNDLE_TRIES + 1):
            try:
                bundle = await self._get_bundle(self._first_calls)
                break
            except Unavailable as error:
                log.warning("the bundle could not be read after attestation (try %d): %s", attempt, error.public)
                await asyncio.sleep(0.2 * attempt)
        return Enrolled(chain, result.reattestable, bundle)

    async def _attest(self, prover: NodeProver, csr: bytes) -> Any:
        proof = prover.prove()
        payload = await self._proofs(_answered, proof, None)
        if not payload:
            raise PreconditionFailed(f"the {prover.name} attestor of this node has nothing to present")
        self.bearings.reset()
        call = Exchange(self._first_calls.open(_AGENT, "AttestAgent"))
        try:
            data = attestation_pb2.AttestationData(type=prover.name, payload=payload)
            params = agent_pb2.AgentX509SVIDParams(csr=csr)
            first = agent_pb2.AttestAgentRequest.Params(data=data, params=params)
            await call.say(agent_pb2.AttestAgentRequest(params=first))
            for _ in range(MAX_CHALLENGES + 1):
                response = await call.hear()
                if response is END:
                    raise Unavailable("the server ended the attestation without a result")
                response = received(response)
                if response.WhichOneof("step") == "result":
                    await call.done()
                    return response.result
                answer = await self._proofs(_answered, proof, response.challenge)
                if not answer:
                    raise Unavailable(f"the server asked more than {prover.name} attestation can answer")
                await call.say(agent_pb2.AttestAgentRequest(challenge_response=answer))
            raise Unavailable("the server's challenges do not end")
        finally:
            call.cancel()
            with contextlib.suppress(ValueError):  # cancelled while its thread is at work: it ends with that step
                proof.close()

    async def renew(self, csr: bytes) -> tuple[bytes, ...]:
        """A new chain for the agent's own SVID."""
        request = agent_pb2.RenewAgentRequest(params=agent_pb2.AgentX509SVIDParams(csr=csr))
        response = await self._calls.ask(_AGENT, "RenewAgent", request)
        return _chain(response.svid)

    async def identity_changed(self) -> None:
        """Let later calls present the agent's newest SVID."""
        await self._member.renew()

    # IdentityServer

    async def post_status(self, version: str, bundle_sequence: int) -> None:
        """Tell the server which software this is."""
        request = agent_pb2.PostStatusRequest(current_bundle_serial=bundle_sequence, agent_version=version)
        await self._calls.ask(_AGENT, "PostStatus", request)

    async def elsewhere(self, selectors: frozenset[Selector]) -> tuple[int, str]:
        """How many entries match that are not this agent's, and below which parent one of them stands."""
        request = explain_pb2.ElsewhereRequest(selectors=[str(one) for one in canonical(selectors)])
        answer = await self._calls.ask(_EXPLAIN, "Elsewhere", request, seconds=EXPLAIN_SECONDS)
        return answer.entries, answer.parent_id

    async def fetch_bundle(self) -> TrustBundle:
        """The trust domain's own bundle."""
        return await self._get_bundle(self._calls)

    async def fetch_federated_bundle(self, trust_domain: TrustDomain) -> TrustBundle | None:
        """A federated trust domain's bundle; None when the server has none."""
        request = bundle_pb2.GetFederatedBundleRequest(trust_domain=trust_domain.name, output_mask=_BUNDLE_MASK)
        try:
            message = await self._calls.ask(_BUNDLE, "GetFederatedBundle", request)
        except (NotFound, Unimplemented):
            return None
        return convert.bundle_from_proto(message)

    async def issue_svids(self, requests: Sequence[SvidRequest]) -> list[SvidAnswer]:
        """One answer for each request, in order."""
        if len(requests) > LARGEST_BATCH:
            raise ValueError(f"at most {LARGEST_BATCH} SVIDs are asked for at once")
        params = [svid_pb2.NewX509SVIDParams(entry_id=one.entry_id, csr=one.csr) for one in requests]
        request = svid_pb2.BatchNewX509SVIDRequest(params=params)
        response = await self._calls.ask(_SVID, "BatchNewX509SVID", request)
        if len(response.results) != len(requests):
            raise Unavailable(f"the server answered {len(response.results)} of {len(requests)} requests for SVIDs")
        return [_answer(result) for result in response.results]

    async def new_jwt_svid(self, entry_id: str, audience: Sequence[str]) -> JwtSvid:
        """A token for one entry, as the server sent it."""
        request = svid_pb2.NewJWTSVIDRequest(entry_id=entry_id, audience=audience)
        response = await self._calls.ask(_SVID, "NewJWTSVID", request)
        return jwt_svid_from_proto(response.svid, tuple(audience))

    async def issue_wits(self, requests: Sequence[WitRequest]) -> list[WitAnswer]:
        """One answer for each request, in order."""
        params = [
            svid_pb2.NewWITSVIDParams(entry_id=one.entry_id, public_key=one.public_key, signing_algorithm=one.algorithm)
            for one in requests
        ]
        request = svid_pb2.BatchNewWITSVIDRequest(params=params)
        response = await self._calls.ask(_SVID, "BatchNewWITSVID", request)
        if len(response.results) != len(requests):
            raise Unavailable(f"the server answered {len(response.results)} of {len(requests)} requests for WIT-SVIDs")
        return [_wit_answer(result) for result in response.results]

    async def sync_entries(self, known: Mapping[str, Stamp]) -> Listing:
        """The authorised entries (SyncAuthorizedEntries, spire_wire section 5.3).

        A server with few entries sends them whole and ends the stream; one with many sends revisions first and is then
        asked for those that are new or differ.
        """
        with translated(self._member):
            call = Exchange(self._calls.open(_ENTRY, "SyncAuthorizedEntries"))
            try:
                await call.say(entry_pb2.SyncAuthorizedEntriesRequest(output_mask=_ENTRY_MASK))
                whole: list[Any] = []
                seen: dict[str, Stamp] = {}
                async for page in _pages(call):
                    whole.extend(page.entries)
                    seen.update((one.id, Stamp(one.revision_number, one.created_at)) for one in page.entry_revisions)
                    if max(len(whole), len(seen)) > MAX_ENTRIES:
                        raise Unavailable(f"the server lists more than {MAX_ENTRIES} entries for this agent")
                if seen:
                    wanted = to_fetch(dict(known) | self._skipped, seen)
                    whole = [entry async for entry in _fetch(call, wanted)]
                await call.done()
            finally:
                call.cancel()
        return self._listing(whole, seen)

    def _listing(self, messages: Sequence[Any], seen: Mapping[str, Stamp]) -> Listing:
        """Read the entries. One that breaks a rule is left out and reported once; it does not stop the others."""
        entries: list[RegistrationEntry] = []
        unreadable: dict[str, Stamp] = {}
        for message in messages:
            try:
                entries.append(convert.entry_from_proto(message, trust_domain=self._trust_domain))
            except IdentityError as error:
                stamp = Stamp(message.revision_number, message.created_at)
                unreadable[message.id] = stamp
                if self._skipped.get(message.id) != stamp:
                    log.warning("an entry is left out: %s", error.public, extra={"facts": {"entry_id": message.id}})
        present = set(seen) if seen else {message.id for message in messages}
        readable = {entry.id for entry in entries}
        still = {
            one: stamp
            for one, stamp in self._skipped.items()
            if one in seen and seen[one] == stamp and one not in readable
        }
        self._skipped = still | unreadable
        return Listing(frozenset(present - self._skipped.keys()), tuple(entries))

    async def _get_bundle(self, calls: Calls) -> TrustBundle:
        message = await calls.ask(_BUNDLE, "GetBundle", bundle_pb2.GetBundleRequest(output_mask=_BUNDLE_MASK))
        if self._bundle is not None and self._bundle[0] == message:
            return self._bundle[
                1
            ]  # unchanged, as nearly always: reading it takes longer the more authorities there are
        try:
            bundle = convert.bundle_from_proto(message)
        except InvalidRequest as error:
            raise Unavailable(f"the server's bundle cannot be used: {error.public}") from error
        if bundle.trust_domain != self._trust_domain:
            raise Unavailable(f"the server sent the bundle of {bundle.trust_domain}, not of {self._trust_domain}")
        self._bundle = (message, bundle)
        return bundle


async def _pages(call: Exchange) -> AsyncIterator[Any]:
    """The responses to one request: up to and with the first that says no more follow."""
    while True:
        page = await call.hear()
        if page is END:
            raise Unavailable("the server ended the entry stream early")
        page = received(page)
        yield page
        if not page.more:
            return


async def _fetch(call: Exchange, ids: Sequence[str]) -> AsyncIterator[Any]:
    """The entries with these ids, asked for in chunks; an id the server knows no more is silently missing."""
    for start in range(0, len(ids), IDS_PER_REQUEST):
        chunk = ids[start : start + IDS_PER_REQUEST]
        await call.say(entry_pb2.SyncAuthorizedEntriesRequest(ids=chunk))
        room = len(chunk)
        async for page in _pages(call):
            room -= len(page.entries)
            if room < 0:
                raise Unavailable("the server sent entries nobody asked for")
            for entry in page.entries:
                yield entry


def _answered(proof: Generator[bytes, bytes, None], challenge: bytes | None) -> bytes:
    """One step of a prover, which may read files or sign; b"" when it has nothing more to say."""
    try:
        return next(proof) if challenge is None else proof.send(challenge)
    except StopIteration:
        return b""


def _chain(svid: x509svid_pb2.X509SVID) -> tuple[bytes, ...]:
    """The chain of the agent's own SVID. A broken one is the server's fault, not that of what was sent."""
    try:
        return convert.chain_from_proto(svid)
    except InvalidRequest as error:
        raise Unavailable(f"the server's answer cannot be used: {error.public}") from error


def _answer(result: Any) -> SvidAnswer:
    status: status_pb2.Status = result.status
    if status.code == 0:
        try:
            return convert.chain_from_proto(result.svid)
        except IdentityError as error:
            return error
    return _item_error(status)


def _wit_answer(result: Any) -> WitAnswer:
    if result.status.code != 0:
        return _item_error(result.status)
    try:
        return wit_svid_from_proto(result.svid)
    except IdentityError as error:
        return error


def _item_error(status: status_pb2.Status) -> IdentityError:
    """The error of one item of a batch."""
    kinds: dict[Kind, type[IdentityError]] = {
        Kind.NOT_FOUND: NotFound,
        Kind.INVALID: InvalidRequest,
        Kind.UNAVAILABLE: Unavailable,
    }
    code = next((one for one in grpc.StatusCode if one.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    return kinds.get(kind_of(code), IdentityError)(f"the server refused: {status.message or code.name}")
