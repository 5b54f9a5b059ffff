"""Where a provider that stands alone has its keys from. Each source fills `HeldKeys` until it is cancelled.

Asking again and again is what tells a source that is well from one that hangs; the Workload API's stream comes on top,
so that a new key is published the moment the agent has it.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

import grpc.aio

from identity_server.oidc.held_keys import HeldKeys
from identity_server.settings_oidc import OidcSettings
from spiffe_core.bundle import JwtAuthority
from spiffe_core.bundle_document import MAX_DOCUMENT_BYTES, load_bundle, load_token_keys
from spiffe_core.clock import Clock
from spiffe_core.errors import Forbidden, IdentityError, InvalidRequest, NotFound, Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as bundle_types
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from spiffe_core.wire.status import from_rpc_error
from workload_api.client import Redacted, WorkloadApiClient

ASK_SECONDS = 10.0
UNNAMED = TrustDomain("unnamed")
"""A bundle document does not say whose it is, and nothing of what is published depends on it."""


class KeySource(Protocol):
    """Something that knows the JWT keys of a trust domain."""

    async def ask(self) -> tuple[JwtAuthority, ...]:
        """All keys of this moment.

        Raises:
            Forbidden: this process may not know them.
            IdentityError: they cannot be had now.
        """
        ...

    async def follow(self, held: HeldKeys) -> None:
        """Hand on changes as they come; return at once if the source has no such thing."""
        ...

    async def close(self) -> None:
        """Let go of what is open."""
        ...


def source_of(settings: OidcSettings) -> KeySource:
    """The source that the settings name."""
    if settings.server_api is not None:
        return ServerKeys(settings.server_api.address)
    if settings.workload_api is not None:
        client = WorkloadApiClient(f"unix://{settings.workload_api.socket_path}")
        return WorkloadKeys(client, settings.workload_api.trust_domain)
    assert settings.file is not None, "the settings name exactly one source"
    return FileKeys(settings.file.path)


async def keep_asking(source: KeySource, held: HeldKeys, clock: Clock, seconds: float) -> None:
    """Ask now and every so many seconds. Lives until cancelled."""
    while True:
        await ask_once(source, held)
        await clock.sleep(seconds)


async def ask_once(source: KeySource, held: HeldKeys) -> None:
    """One question, and what its answer means for the keys that are held."""
    try:
        held.loaded(await source.ask())
    except Forbidden as error:
        held.taken_away(error)
    except IdentityError as error:
        held.failed(error)


class ServerKeys:
    """A server's admin socket: `Bundle.GetBundle`, which a stock SPIRE server answers as well."""

    def __init__(self, path: Path) -> None:
        self._channel = unix_channel(path)
        self._stub: Any = Stub(self._channel, bundle_pb2.DESCRIPTOR.services_by_name["Bundle"])

    async def ask(self) -> tuple[JwtAuthority, ...]:
        """The JWT keys of the server's own bundle."""
        request = bundle_pb2.GetBundleRequest(output_mask=bundle_types.BundleMask(jwt_authorities=True))
        try:
            answer = await self._stub.GetBundle(request, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        if answer is None:  # what grpc.aio gives for bytes that are no such message
            raise InvalidRequest("the server's answer is not a bundle")
        return convert.jwt_authorities_from_proto(answer.jwt_authorities)

    async def follow(self, held: HeldKeys) -> None:
        """A server tells nothing unasked on its admin socket."""

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class WorkloadKeys:
    """An agent's Workload API: the JWT bundle of one trust domain, ours or one we federate with."""

    def __init__(self, client: WorkloadApiClient, trust_domain: TrustDomain) -> None:
        self._client = client
        self._trust_domain = trust_domain

    async def ask(self) -> tuple[JwtAuthority, ...]:
        """The first message of a new stream: an agent that hangs does not send one."""
        bundles = await self._client.fetch_jwt_bundles(timeout=ASK_SECONDS)
        document = bundles.get(str(self._trust_domain.id))
        if document is None:
            raise self._absent()
        return load_token_keys(document, self._trust_domain, "jwt-svid").bundle.jwt_authorities

    async def follow(self, held: HeldKeys) -> None:
        """Each state the agent sends. What goes wrong is noticed by asking."""
        async with aclosing(self._client.watch_jwt_bundles()) as updates:
            async for update in updates:
                if isinstance(update, Redacted):
                    held.taken_away(update.error)
                elif self._trust_domain in update:
                    held.loaded(update[self._trust_domain].jwt_authorities)
                else:
                    held.failed(self._absent())

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()

    def _absent(self) -> NotFound:
        return NotFound(
            f"the agent gives this process no JWT keys of {self._trust_domain}; check workload_api.trust_domain, and "
            "that an entry with federates_with matches this process if it is another trust domain's"
        )


class FileKeys:
    """A SPIFFE bundle document that somebody else keeps current."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disk = Offload("oidc-file", 1)

    async def ask(self) -> tuple[JwtAuthority, ...]:
        """The keys for JWT-SVIDs in the file, read anew."""
        data = await self._disk(_read, self._path)
        return load_bundle(data, UNNAMED).bundle.jwt_authorities

    async def follow(self, held: HeldKeys) -> None:
        """A file tells nothing unasked."""

    async def close(self) -> None:
        """Nothing is open."""


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_DOCUMENT_BYTES + 1)  # one more than may be, so that too much is noticed
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read: {error.strerror}") from None


async def follow_for_good(source: KeySource, held: HeldKeys) -> None:
    """Follow until cancelled. A source that will never send anything unasked is asked all the same."""
    try:
        await source.follow(held)
    except IdentityError as error:
        held.failed(error)
    await asyncio.Event().wait()
