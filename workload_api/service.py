"""The SPIFFE Workload API as a gRPC service (spiffe_conformance section 1.1, spire_wire section 6.1).

Checks come in one order, so that a caller who is nobody learns nothing from the differences (conformance section 1.4):
security header, profile offered, request fields, caller, entitlement, work.

Every message of a stream is the complete state (WAPI-09). It is serialized once for all streams that follow the same
view, and kept with the view.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import grpc

from spiffe_core.clock import Clock
from spiffe_core.errors import (
    Exhausted,
    InvalidRequest,
    NoIdentityIssued,
    Unauthenticated,
    Unimplemented,
)
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.peer import UnixPeer
from spiffe_core.wire.services import handlers
from workload_api.backend import JwtBackend, WitBackend, WorkloadBackend, WorkloadView
from workload_api.streams import StreamLimits, Streams
from workload_api.token_answers import (
    check_validation,
    jwt_bundles_response,
    jwt_svid_response,
    validate_response,
    wanted_audience,
    wanted_id,
    wit_bundles_response,
    wit_svid_response,
)
from workload_api.x509_answers import x509_bundles_response, x509_svid_response

Backend = TypeVar("Backend")

log = logging.getLogger(__name__)

HEADER = ("workload.spiffe.io", "true")
SERVICE = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]


@dataclass(frozen=True, slots=True)
class WorkloadApiSettings:
    """What the operator decides.

    `allow_unauthenticated_verifiers`: callers without an identity may read the own trust domain's bundle and have
    tokens validated with it (N-A-10). `wait_for_identity`: a stream of SVIDs that matches nothing yet stays open, and
    delivers when an entry appears; the standard's answer is PermissionDenied. `foreign_claims`: claims of other trust
    domains' tokens that validation shows beside the SPIFFE ones. `jwt_key_use`: keys in JWT bundles bear `use`.
    `max_message_bytes`: what clients accept; gRPC's own default is 4 MiB.
    """

    allow_unauthenticated_verifiers: bool = False
    wait_for_identity: bool = False
    foreign_claims: frozenset[str] = frozenset()
    jwt_key_use: bool = False
    max_message_bytes: int = 4 * 1024 * 1024
    limits: StreamLimits = field(default_factory=StreamLimits)


class WorkloadApi:
    """Serves workloads on one agent. Belongs to the event loop's thread.

    `caller_of` is the front door's; `cut` closes the connection of a caller that is not who it was (see `Streams`). A
    profile without its backend (`jwt`, `wit`) is off: its calls answer Unimplemented (WAPI-02, WAPI-47).
    """

    def __init__(
        self,
        backend: WorkloadBackend,
        caller_of: Callable[[Any], object],
        clock: Clock,
        *,
        jwt: JwtBackend | None = None,
        wit: WitBackend | None = None,
        settings: WorkloadApiSettings | None = None,
        cut: Callable[[UnixPeer], object] | None = None,
    ) -> None:
        self._backend, self._jwt, self._wit = backend, jwt, wit
        self._caller_of = caller_of
        self._clock = clock
        self._settings = settings or WorkloadApiSettings()
        self.streams = self._streams = Streams(backend, self._settings.limits, cut)
        """What is open; shared with the other services on the socket."""

    @property
    def open_streams(self) -> int:
        """How many streams are open."""
        return self._streams.open

    def handler(self) -> grpc.GenericRpcHandler:
        """For the gRPC server behind the front door."""
        return handlers(SERVICE, self)

    def drain(self) -> None:
        """Shut down: every stream ends with Unavailable "restarting", at once if it is idle (R6)."""
        self._streams.drain()

    async def FetchX509SVID(self, _request: Any, context: Any) -> AsyncIterator[bytes]:
        """All X509-SVIDs of the caller with their keys and bundles, again at each change."""
        _require_header(context)
        last = b""
        async with aclosing(self._streams.follow(self._caller(context))) as views:
            async for view in views:
                if not view.x509_svids and not last and self._settings.wait_for_identity:
                    continue
                message = self._sendable(x509_svid_response(view, self._clock.now()))
                if message != last:
                    last = message
                    yield message

    def FetchX509Bundles(self, _request: Any, context: Any) -> AsyncGenerator[bytes, None]:
        """The own bundle and those of federated trust domains, again at each change of them."""
        _require_header(context)
        return self._bundles(context, x509_bundles_response)

    async def FetchJWTSVID(self, request: Any, context: Any) -> bytes:
        """A token for the audiences asked for, of each identity of the caller or of one."""
        jwt = _offered(self._jwt, "JWT", context)
        audience, requested = wanted_audience(request.audience), wanted_id(request.spiffe_id)
        async with self._streams.call(self._caller(context)) as selectors:
            svids = await jwt.jwt_svids(selectors, audience, requested)
        return self._sendable(jwt_svid_response(svids))

    def FetchJWTBundles(self, _request: Any, context: Any) -> AsyncGenerator[bytes, None]:
        """The JWT keys of the own and of federated trust domains, again at each change of them."""
        _offered(self._jwt, "JWT", context)
        return self._bundles(context, partial(jwt_bundles_response, key_use=self._settings.jwt_key_use))

    async def ValidateJWTSVID(self, request: Any, context: Any) -> bytes:
        """Whether a token proves an identity to the caller; what it says if it does."""
        _offered(self._jwt, "JWT", context)
        check_validation(request.audience, request.svid)
        async with self._streams.call(self._caller(context)) as selectors:
            visible = self._backend.visible(selectors)
        if not visible.entitled and not self._settings.allow_unauthenticated_verifiers:
            raise NoIdentityIssued
        claims = self._settings.foreign_claims
        return validate_response(request.svid, request.audience, visible, self._clock.now(), foreign_claims=claims)

    async def FetchWITSVID(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        """The caller's WIT-SVIDs, all or one, with their keys, again at each change."""
        wit = _offered(self._wit, "WIT", context)
        requested = wanted_id(request.spiffe_id)
        last = b""
        async with aclosing(self._streams.follow_from(self._caller(context), wit.subscribe_wit)) as views:
            async for view in views:
                if not view.wit_svids and not last and self._settings.wait_for_identity:
                    continue
                message = self._sendable(wit_svid_response(view, requested))
                if message != last:
                    last = message
                    yield message

    def FetchWITBundles(self, _request: Any, context: Any) -> AsyncGenerator[bytes, None]:
        """The WIT keys of the own and of federated trust domains, again at each change of them."""
        _offered(self._wit, "WIT", context)
        return self._bundles(context, wit_bundles_response)

    async def _bundles(self, context: Any, render: Callable[[WorkloadView], bytes]) -> AsyncGenerator[bytes, None]:
        last = b""
        async with aclosing(self._streams.follow(self._caller(context))) as views:
            async for view in views:
                if not view.x509_svids and not self._settings.allow_unauthenticated_verifiers:
                    raise NoIdentityIssued
                message = self._sendable(render(view))
                if message != last:
                    last = message
                    yield message

    def _caller(self, context: Any) -> UnixPeer:
        peer = self._caller_of(context)
        if not isinstance(peer, UnixPeer):
            raise Unauthenticated("the Workload API serves processes of this machine, over its Unix socket")
        return peer

    def _sendable(self, message: bytes) -> bytes:
        """A set that is too large is refused whole, never cut (N-A-41)."""
        limit = self._settings.max_message_bytes
        if len(message) > limit:
            log.error("a Workload API response has %d bytes, clients accept %d", len(message), limit)
            raise Exhausted(
                f"the response has {len(message)} bytes, more than {limit}: federate with fewer trust domains, "
                "or give the workload fewer identities"
            )
        return message


def _require_header(context: Any) -> None:
    """Exactly one `workload.spiffe.io: true` (Workload Endpoint section 3), before anything else is looked at."""
    key, value = HEADER
    if [found for name, found in context.invocation_metadata() or () if name == key] != [value]:
        raise InvalidRequest("security header missing from request", field=key)


def _offered(backend: Backend | None, profile: str, context: Any) -> Backend:
    """The backend of a profile that is on. The header comes first, also for what is not offered (conformance D18)."""
    _require_header(context)
    if backend is None:
        raise Unimplemented(f"the {profile} profile is not offered here")
    return backend
