"""Upstream authorities: who signs this server's CA certificate when it does not sign its own.

One module per kind, loaded only if `[upstream] kind` names it. Each implements `ports.UpstreamAuthority`.
"""

from __future__ import annotations

from identity_server.ports import UpstreamAuthority
from identity_server.settings_upstream import UpstreamSection
from spiffe_core.clock import Clock
from spiffe_core.spiffe_id import TrustDomain


def upstream_of(section: UpstreamSection | None, trust_domain: TrustDomain, clock: Clock) -> UpstreamAuthority | None:
    """The upstream authority the settings name, not yet started; None where the server is its own root."""
    if section is None:
        return None
    if section.spire is not None:
        from identity_server.upstream.spire import SpireUpstream

        return SpireUpstream(section.spire, trust_domain=trust_domain, clock=clock)
    if section.vault is not None:
        from identity_server.upstream.vault import VaultUpstream

        return VaultUpstream(section.vault, clock=clock)
    assert section.disk is not None, "the settings demand the table of the kind"
    from identity_server.upstream.disk import DiskUpstream

    return DiskUpstream(section.disk, trust_domain=trust_domain, clock=clock)
