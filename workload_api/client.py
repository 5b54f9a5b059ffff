"""An asynchronous Workload API client.

    async with WorkloadApiClient() as client:              # SPIFFE_ENDPOINT_SOCKET, or an address
        context = await client.fetch_x509()
        async for update in client.watch_x509():
            ...

What happens after each end of a stream stands in one table (Workload Endpoint section 6 and appendix A); every message
is checked before it is handed on (`x509_context`).
"""

from __future__ import annotations

import enum
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc.aio

from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import load_token_keys
from spiffe_core.clock import Clock, SystemClock
from spiffe_core.errors import IdentityError, InvalidRequest, Kind, Unavailable
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.channels import channel_options, unix_channel
from spiffe_core.wire.services import Stub
from spiffe_core.wire.status import from_rpc_error
from workload_api.address import TcpAddress, UnixAddress, endpoint_address
from workload_api.x509_context import MAX_BUNDLES, X509Context, x509_bundles, x509_context

log = logging.getLogger(__name__)

_State = TypeVar("_State")

METADATA = (("workload.spiffe.io", "true"),)
"""Workload Endpoint section 3: on every request."""


class After(enum.Enum):
    """What a client does when a stream has ended."""

    STOP = "report it and do not try again"
    KEEP = "keep what is held and try again"
    DROP = "stop using what is held, and try again"


AFTER: dict[Kind, After] = dict.fromkeys(Kind, After.KEEP) | {
    Kind.INVALID: After.STOP,  # WEP-20
    Kind.UNIMPLEMENTED: After.STOP,  # WEP-25, WAPI-48
    Kind.FORBIDDEN: After.DROP,  # WEP-24, WAPI-28
}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waiting times between attempts, in seconds: doubled each time, up to `longest`."""

    first: float = 0.1
    longest: float = 30.0

    def delay(self, attempt: int, jitter: float) -> float:
        """The wait after `attempt` failures in a row (0 for the first).

        `jitter` in [0, 1] shortens it by up to 20 %.
        """
        return min(self.longest, self.first * 2.0 ** min(attempt, 32)) * (1 - 0.2 * jitter)


@dataclass(frozen=True, slots=True)
class FetchedJwt:
    """A JWT-SVID of this process. A bearer token: keep its text out of logs."""

    spiffe_id: SpiffeId
    token: str = field(repr=False)
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Redacted:
    """The identity was taken away: stop using what is held. `error` is what the agent said."""

    error: IdentityError


class WorkloadApiClient:
    """Talks to one agent. Its connection is made when it is first needed, on the running event loop.

    With `check_revocation` peers are refused (`workload_api.tls`) whose certificates stand in a revocation list that
    the agent delivers; SPIFFE asks this of nobody, and most agents deliver none.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        backoff: Backoff | None = None,
        jitter: Callable[[], float] | None = None,
        check_revocation: bool = False,
    ) -> None:
        self.address: UnixAddress | TcpAddress = endpoint_address(address, os.environ if environ is None else environ)
        self._clock = clock or SystemClock()
        self._backoff = backoff or Backoff()
        self._jitter = jitter or secrets.SystemRandom().random
        self._check_revocation = check_revocation
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; what is under way ends."""
        if self._channel is not None:
            channel, self._channel, self._stub = self._channel, None, None
            await channel.close()

    async def fetch_x509(self, *, timeout: float = 10.0) -> X509Context:  # noqa: ASYNC109  # gRPC's own deadline
        """The present X.509 state, in one attempt.

        Raises:
            Forbidden: no identity is issued to this process.
            Unavailable: the agent cannot be reached or has nothing to give yet.
            InvalidRequest, VerificationFailed: what came may not be used.
        """
        ask = self._service().FetchX509SVID
        return self._read(await _first(ask(workload_pb2.X509SVIDRequest(), metadata=METADATA, timeout=timeout)))

    async def fetch_x509_bundles(self, *, timeout: float = 10.0) -> dict[TrustDomain, TrustBundle]:  # noqa: ASYNC109  # gRPC's own deadline
        """The X.509 authorities of each trust domain that this process may verify peers of, in one attempt.

        Raises:
            Forbidden, Unavailable: as for `fetch_x509`.
            InvalidRequest, InvalidBundle: what came may not be used.
        """
        ask = self._service().FetchX509Bundles
        message = await _first(ask(workload_pb2.X509BundlesRequest(), metadata=METADATA, timeout=timeout))
        if message is None:
            raise InvalidRequest("the agent's answer is not an X509BundlesResponse")
        return x509_bundles(message.bundles)

    async def fetch_jwt(
        self,
        audience: Sequence[str],
        *,
        spiffe_id: SpiffeId | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109  # gRPC's own deadline
    ) -> tuple[FetchedJwt, ...]:
        """JWT-SVIDs for `audience`: of every identity of this process, or of one; the default identity first.

        What a token says is for whoever it is presented to; the holder need not verify it.

        Raises:
            Forbidden: no identity is issued to this process.
            Unavailable: the agent cannot be reached, or has no token to give.
            InvalidRequest: the request, or what came, may not be used.
        """
        request = workload_pb2.JWTSVIDRequest(audience=audience, spiffe_id="" if spiffe_id is None else str(spiffe_id))
        try:
            answer = await self._service().FetchJWTSVID(request, metadata=METADATA, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        if answer is None or not answer.svids or not all(one.svid and one.spiffe_id for one in answer.svids):
            raise InvalidRequest("the agent's answer holds no token")  # WAPI-16
        return tuple(FetchedJwt(SpiffeId.parse(one.spiffe_id), one.svid, one.hint) for one in answer.svids)

    async def fetch_jwt_bundles(self, *, timeout: float = 10.0) -> dict[str, bytes]:  # noqa: ASYNC109  # gRPC's own deadline
        """JWK Sets by trust domain ID.

        Raises:
            Forbidden, Unavailable: as for `fetch_jwt`.
        """
        ask = self._service().FetchJWTBundles
        message = await _first(ask(workload_pb2.JWTBundlesRequest(), metadata=METADATA, timeout=timeout))
        if message is None:
            raise Unavailable("the agent closed the stream without an answer")
        return dict(message.bundles)

    def watch_x509(
        self, on_error: Callable[[IdentityError], None] | None = None
    ) -> AsyncGenerator[X509Context | Redacted, None]:
        """Every state in turn, for as long as it is iterated; reconnects by itself.

        `on_error` hears of each failed attempt and of each message that was refused; the state before it stays good.

        Raises:
            InvalidRequest, Unimplemented: the agent will never answer this; it is not asked again.
        """

        def ask() -> Any:
            return self._service().FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=METADATA)

        return self._watch(ask, self._read, on_error)

    def watch_jwt_bundles(
        self, on_error: Callable[[IdentityError], None] | None = None
    ) -> AsyncGenerator[dict[TrustDomain, TrustBundle] | Redacted, None]:
        """The JWT keys of each trust domain that this process may verify tokens of; otherwise as `watch_x509`."""

        def ask() -> Any:
            return self._service().FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=METADATA)

        return self._watch(ask, _read_jwt_bundles, on_error)

    async def _watch(
        self,
        ask: Callable[[], Any],
        read: Callable[[Any], _State],
        on_error: Callable[[IdentityError], None] | None,
    ) -> AsyncGenerator[_State | Redacted, None]:
        failures = 0
        while True:
            call = ask()
            try:
                async for message in call:
                    try:
                        state = read(message)
                    except IdentityError as refusal:
                        self._report(refusal, on_error, "a Workload API message was refused: %s")
                        continue
                    failures = 0
                    yield state
                ended: IdentityError = Unavailable("the agent closed the stream")
            except grpc.aio.AioRpcError as error:
                ended = from_rpc_error(error)
            finally:
                call.cancel()
            self._report(ended, on_error, "the Workload API stream ended: %s")
            after = AFTER[ended.kind]
            if after is After.STOP:
                raise ended
            if after is After.DROP:
                yield Redacted(ended)
            await self._clock.sleep(self._backoff.delay(failures, self._jitter()))
            failures += 1

    def _service(self) -> Any:
        if self._stub is None:
            self._channel = _channel(self.address)
            self._stub = Stub(self._channel, workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"])
        return self._stub

    def _read(self, message: Any) -> X509Context:
        if message is None:  # what grpc.aio gives for bytes that are no such message
            raise InvalidRequest("the agent's answer is not an X509SVIDResponse")
        crl = message.crl if self._check_revocation else ()
        return x509_context(message.svids, message.federated_bundles, self._clock.now(), crl)

    @staticmethod
    def _report(error: IdentityError, on_error: Callable[[IdentityError], None] | None, text: str) -> None:
        log.info(text, error.public)
        if on_error is not None:
            on_error(error)


async def _first(call: Any) -> Any:
    """The first message of a stream, which ends with it; None for bytes that are no such message."""
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    finally:
        call.cancel()
    if message is grpc.aio.EOF:
        raise Unavailable("the agent closed the stream without an answer")
    return message


def _channel(address: UnixAddress | TcpAddress) -> grpc.aio.Channel:
    if isinstance(address, UnixAddress):
        return unix_channel(address.path)
    family = "ipv6" if ":" in str(address.ip) else "ipv4"
    host = f"[{address.ip}]" if family == "ipv6" else str(address.ip)
    return grpc.aio.insecure_channel(f"{family}:{host}:{address.port}", options=channel_options())


def _read_jwt_bundles(message: Any) -> dict[TrustDomain, TrustBundle]:
    """A JWTBundlesResponse: complete, so that what is absent is not to be trusted any more (WAPI-40, WAPI-41).

    Raises:
        InvalidRequest: it is none, or a name or a key set in it cannot be read; nothing of it may be used.
    """
    if message is None:
        raise InvalidRequest("the agent's answer is not a JWTBundlesResponse")
    if not 0 < len(message.bundles) <= MAX_BUNDLES:  # WAPI-16
        raise InvalidRequest(f"bundles: must have 1 to {MAX_BUNDLES} elements", field="bundles")
    bundles: dict[TrustDomain, TrustBundle] = {}
    for name, document in message.bundles.items():
        trust_domain = TrustDomain.parse(name, field="bundles")
        loaded = load_token_keys(document, trust_domain, "jwt-svid")
        bundles[trust_domain] = TrustBundle(trust_domain, jwt_authorities=loaded.bundle.jwt_authorities)
    return bundles
