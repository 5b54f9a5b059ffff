"""What the composition root puts together for federation: the bundle client, the refresh, the invitations."""

from __future__ import annotations

import random  # noqa: TID251  # the rim: jitter is drawn here and passed down
from dataclasses import dataclass

from identity_server.bundle_client import HttpsBundleFetcher
from identity_server.bundle_client.fetcher import ClientLimits
from identity_server.domain.federation import EndpointProfile
from identity_server.monitoring import bundle_fetches, bundle_updates
from identity_server.ports import AuditLog, Store
from identity_server.services.bundle_refresh import BundleRefresh
from identity_server.services.invitations import Invitations, OwnEndpoint
from identity_server.services.own_identity import OwnIdentity
from identity_server.settings_federates_with import static_relationships
from identity_server.settings_federation import FederationSection
from spiffe_core.clock import Clock
from spiffe_core.runtime.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Federating:
    """How this server learns the keys of other trust domains."""

    refresh: BundleRefresh
    invitations: Invitations


def federating(
    section: FederationSection,
    *,
    store: Store,
    audit: AuditLog,
    clock: Clock,
    own: OwnIdentity,
    metrics: Metrics | None,
) -> Federating:
    """The parts, not yet at work: `refresh.run` is a loop of the daemon."""
    client = section.bundle_client
    limits = ClientLimits(policy=client.policy, ca_file=client.ca_file, redirects=client.max_redirects)
    fetcher = HttpsBundleFetcher(limits, clock)
    refresh = BundleRefresh(
        store=store,
        audit=audit,
        clock=clock,
        fetcher=fetcher,
        jitter=lambda: random.uniform(-1, 1),  # noqa: S311  # spreads load, guards nothing
        static=static_relationships(section.federates_with),
        floor=client.min_interval,
        on_fetched=bundle_fetches(metrics),
        on_updated=bundle_updates(metrics),
    )
    invitations = Invitations(
        store=store,
        audit=audit,
        clock=clock,
        fetcher=fetcher,
        refresh=refresh,
        identity=lambda: own.identity,
        own_id=own.spiffe_id,
        endpoint=own_endpoint(section),
    )
    return Federating(refresh, invitations)


def own_endpoint(section: FederationSection) -> OwnEndpoint:
    """Where others fetch our bundle: https_web only if every endpoint has a web certificate."""
    web = section.bundle_endpoint and all(one.profile.https_web is not None for one in section.bundle_endpoint)
    profile = EndpointProfile.HTTPS_WEB if web else EndpointProfile.HTTPS_SPIFFE
    return OwnEndpoint(section.public_url, profile, served=bool(section.bundle_endpoint))
