"""What the server publishes over HTTP, put together from the settings. Nothing is imported for what is not configured."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from identity_server.ports import Store
from identity_server.services.own_identity import OwnIdentity
from identity_server.services.published_bundle import PublishedBundle
from identity_server.settings import ServerSettings
from identity_server.settings_federation import BundleEndpointSection
from identity_server.web.endpoints import Chore, Endpoint, WebEndpoints
from spiffe_core.bundle import DEFAULT_POLL, TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.runtime.watch import Watch
from spiffe_core.wire.tls import TlsIdentity

if TYPE_CHECKING:
    from identity_server.web.listener import WebLimits

log = logging.getLogger(__name__)

SEQUENCE_FILE = "bundle-sequence.json"
_TABLE = "federation.bundle_endpoint"


@dataclass(frozen=True, slots=True)
class Published:
    """The endpoints, and what they show."""

    web: WebEndpoints
    bundle: PublishedBundle | None = None

    @property
    def watch(self) -> Watch[TrustBundle | None]:
        """The bundle to be published; None for ever where nothing is."""
        return self.bundle.watch if self.bundle is not None else Watch(None)

    async def keep(self) -> None:
        """Publish changes and do the endpoints' chores, until cancelled."""
        await self.web.keep()


def published(settings: ServerSettings, store: Store, own: OwnIdentity, clock: Clock) -> Published:
    """All endpoints of the settings, not yet open.

    Raises:
        ConfigError: a certificate cannot be read.
    """
    hint = settings.federation.refresh_hint
    if hint is None and settings.publish.is_empty:
        return Published(WebEndpoints())
    from identity_server.web.sequence_file import SequenceFile

    bundle = PublishedBundle(
        store=store,
        memory=SequenceFile(settings.data_dir / SEQUENCE_FILE),
        clock=clock,
        trust_domain=settings.trust_domain,
        refresh_hint=int((hint or DEFAULT_POLL).total_seconds()),
    )
    sections = settings.federation.bundle_endpoint
    endpoints = [
        _bundle_endpoint(section, _table(number, len(sections)), bundle, store, own, clock)
        for number, section in enumerate(sections)
    ]
    return Published(WebEndpoints(endpoints, chores=(bundle,)), bundle)


def _table(number: int, of: int) -> str:
    return _TABLE if of == 1 else f"{_TABLE}[{number}]"


def _bundle_endpoint(
    section: BundleEndpointSection, table: str, bundle: PublishedBundle, store: Store, own: OwnIdentity, clock: Clock
) -> Endpoint:
    from identity_server.web.bundle_endpoint import BundleDocuments, bundle_site
    from identity_server.web.listener import WebListener
    from identity_server.web.tls import WebTls

    identity, chores, profile = _identity(section, table, own, clock)
    documents = BundleDocuments(bundle.current, lambda: store.state.value.bundles, section.bundle_map)
    listener = WebListener(
        bundle_site(documents), tls=WebTls(identity).current, now=clock.now, limits=limits_that_fit()
    )
    return Endpoint(f"bundle endpoint ({profile})", listener, section.address, section.port, table, chores)


def _identity(
    section: BundleEndpointSection, table: str, own: OwnIdentity, clock: Clock
) -> tuple[Callable[[], TlsIdentity], tuple[Chore, ...], str]:
    web = section.profile.https_web
    if web is None:
        return (lambda: own.unexpired), (), "https_spiffe"
    from identity_server.web.certificate_files import CertificateFiles

    files = CertificateFiles(
        web.serving_cert_file.cert_file_path,
        web.serving_cert_file.key_file_path,
        seconds=web.serving_cert_file.file_sync_interval.total_seconds(),
        clock=clock,
        field=f"{table}.profile.https_web.serving_cert_file",
    )
    return files.identity, (files,), "https_web"


def limits_that_fit() -> WebLimits:
    """The usual limits, with fewer connections where few files may be open."""
    from identity_server.web.listener import CONNECTIONS, FEWEST_CONNECTIONS, FILES_PART, WebLimits

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return WebLimits()
    return WebLimits(connections=max(FEWEST_CONNECTIONS, min(CONNECTIONS, hard // FILES_PART)))
