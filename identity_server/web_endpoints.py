"""What the server publishes over HTTP, put together from the settings.

Nothing is imported for what is not configured.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from identity_server.ports import Store
from identity_server.services.own_identity import OwnIdentity
from identity_server.services.published_bundle import PublishedBundle
from identity_server.settings import ServerSettings
from identity_server.settings_federation import AcmeSection, BundleEndpointSection, Http01Section
from identity_server.web.endpoints import Chore, Endpoint, WebEndpoints
from spiffe_core.bundle import DEFAULT_POLL, TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire.tls import TlsIdentity

if TYPE_CHECKING:
    from identity_server.web.acme_answers import AcmeAnswers
    from identity_server.web.listener import WebLimits

log = logging.getLogger(__name__)

SEQUENCE_FILE = "bundle-sequence.json"
ACME_FOLDER = "acme"
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

    def troubles(self) -> tuple[str, ...] | None:
        """What is wrong with the endpoints, for the health report; None where there are none."""
        return self.web.troubles() if self.web.endpoints else None

    async def keep(self) -> None:
        """Publish changes and do the endpoints' chores, until cancelled."""
        await self.web.keep()


@dataclass(frozen=True, slots=True)
class _Look:
    """What endpoints need of the server."""

    own: OwnIdentity
    clock: Clock
    data_dir: Path
    trust_domain: TrustDomain


def published(settings: ServerSettings, store: Store, own: OwnIdentity, clock: Clock) -> Published:
    """All endpoints of the settings, not yet open.

    Raises:
        ConfigError: a certificate cannot be read.
    """
    hint = settings.federation.refresh_hint
    discovery = _discovery(settings, store, clock)
    if hint is None and settings.publish.is_empty:
        return Published(WebEndpoints(discovery))
    from identity_server.web.sequence_file import SequenceFile

    bundle = PublishedBundle(
        store=store,
        memory=SequenceFile(settings.data_dir / SEQUENCE_FILE),
        clock=clock,
        trust_domain=settings.trust_domain,
        refresh_hint=int((hint or DEFAULT_POLL).total_seconds()),
    )
    sections = settings.federation.bundle_endpoint
    look = _Look(own, clock, settings.data_dir, settings.trust_domain)
    endpoints = [
        endpoint
        for number, section in enumerate(sections)
        for endpoint in _bundle_endpoints(section, _table(number, len(sections)), bundle, store, look)
    ]
    return Published(WebEndpoints([*endpoints, *discovery], chores=(bundle,)), bundle)


def _discovery(settings: ServerSettings, store: Store, clock: Clock) -> list[Endpoint]:
    """The server's own OIDC discovery provider; no endpoint without [oidc]."""
    if settings.oidc is None:
        return []
    from identity_server.oidc.endpoints import discovery_endpoints
    from identity_server.oidc.own_keys import OwnKeys

    provider = settings.oidc.provider(settings.jwt.issuer)
    keys = OwnKeys(provider, lambda: store.state.value.bundles)
    folder = settings.data_dir / ACME_FOLDER
    return discovery_endpoints(settings.oidc, provider, keys.current, clock, limits_that_fit(), folder, table="oidc.")


def _table(number: int, of: int) -> str:
    return _TABLE if of == 1 else f"{_TABLE}[{number}]"


@dataclass(frozen=True, slots=True)
class _Presented:
    """What an endpoint presents, and what that takes."""

    profile: str
    identity: Callable[[], TlsIdentity]
    chores: tuple[Chore, ...] = ()
    answers: AcmeAnswers | None = None
    http01: Http01Section | None = None


def _bundle_endpoints(
    section: BundleEndpointSection, table: str, bundle: PublishedBundle, store: Store, look: _Look
) -> Iterator[Endpoint]:
    """The endpoint, and the one that proves its name where that goes over HTTP."""
    from identity_server.web.bundle_endpoint import BundleDocuments, bundle_site
    from identity_server.web.documents import Site
    from identity_server.web.listener import WebListener
    from identity_server.web.tls import WebTls

    presented = _presented(section, table, look)
    documents = BundleDocuments(bundle.current, lambda: store.state.value.bundles, section.bundle_map)
    listener = WebListener(
        bundle_site(documents, look.trust_domain),
        tls=WebTls(presented.identity).current,
        now=look.clock.now,
        limits=limits_that_fit(),
        validators=presented.answers,
    )
    name = f"bundle endpoint ({presented.profile})"
    yield Endpoint(name, listener, section.address, section.port, table, presented.chores)
    if presented.answers is not None and presented.http01 is not None:
        plain = WebListener(Site(presented.answers.find), tls=None, now=look.clock.now, limits=limits_that_fit())
        field = f"{table}.profile.https_web.acme.http01"
        yield Endpoint("ACME validation (http-01)", plain, presented.http01.address, presented.http01.port, field)


def _presented(section: BundleEndpointSection, table: str, look: _Look) -> _Presented:
    web = section.profile.https_web
    if web is None:
        return _Presented("https_spiffe", lambda: look.own.unexpired)
    if web.acme is not None:
        return _from_acme(web.acme, look)
    assert web.serving_cert_file is not None, "the settings demand one of the two tables"
    from identity_server.web.certificate_files import CertificateFiles

    files = CertificateFiles(
        web.serving_cert_file.cert_file_path,
        web.serving_cert_file.key_file_path,
        seconds=web.serving_cert_file.file_sync_interval.total_seconds(),
        clock=look.clock,
        field=f"{table}.profile.https_web.serving_cert_file",
    )
    return _Presented("https_web", files.identity, (files,))


def _from_acme(section: AcmeSection, look: _Look) -> _Presented:
    from identity_server.web.acme_opening import acme_certificate

    certificate, answers = acme_certificate(section, section.domain_name, look.data_dir / ACME_FOLDER, look.clock)
    return _Presented("https_web, ACME", certificate.identity, (certificate,), answers, section.http01)


def limits_that_fit() -> WebLimits:
    """The usual limits, with fewer connections where few files may be open."""
    from identity_server.web.listener import CONNECTIONS, FEWEST_CONNECTIONS, FILES_PART, WebLimits

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return WebLimits()
    return WebLimits(connections=max(FEWEST_CONNECTIONS, min(CONNECTIONS, hard // FILES_PART)))
