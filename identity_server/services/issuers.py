"""What signs on this server, by kind, and the lines that seat authorities in it; put together from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from identity_server.domain.authority import AuthorityKind
from identity_server.domain.profiles import Profile
from identity_server.domain.server_settings import DefaultTtls
from identity_server.ports import Store, UpstreamAuthority
from identity_server.services.authority_lines import CaSettings, Entropy, Line, TokenLine, X509Line
from identity_server.services.issuer import Issuer
from identity_server.services.token_issuer import JwtIssuer, WitIssuer
from identity_server.services.upstream_lines import UpstreamTokenLine, UpstreamX509Line
from spiffe_core.clock import Clock


@dataclass(frozen=True, slots=True)
class Issuers:
    """What signs, by kind. None where the kind is switched off."""

    x509: Issuer
    jwt: JwtIssuer | None
    wit: WitIssuer | None

    def use_defaults(self, ttls: DefaultTtls) -> None:
        """From now on, what is asked for without a lifetime gets these."""
        self.x509.default_ttls = {Profile.WORKLOAD: ttls.x509, Profile.SERVER: ttls.x509, Profile.AGENT: ttls.agent}
        if self.jwt is not None and ttls.jwt:
            self.jwt.default_ttl = ttls.jwt
        if self.wit is not None and ttls.wit:
            self.wit.default_ttl = ttls.wit


def lines_of(
    settings: CaSettings,
    *,
    store: Store,
    clock: Clock,
    entropy: Entropy,
    upstream: UpstreamAuthority | None = None,
) -> tuple[Issuers, dict[AuthorityKind, Line]]:
    """The issuers of the kinds that are switched on, and the lines that seat authorities in them."""
    whole = int(settings.x509_ttl.total_seconds())
    ttls = {
        Profile.WORKLOAD: whole,
        Profile.SERVER: whole,
        Profile.AGENT: int(settings.agent_ttl.total_seconds()),
    }
    issuer = Issuer(store=store, clock=clock, entropy=entropy, default_ttls=ttls)
    lines: list[Line] = [
        X509Line(issuer, settings, entropy)
        if upstream is None
        else UpstreamX509Line(issuer, settings, entropy, upstream=upstream, clock=clock)
    ]
    jwt: JwtIssuer | None = None
    wit: WitIssuer | None = None
    if settings.jwt is not None:
        ttl = int(settings.jwt.default_ttl.total_seconds())
        jwt = JwtIssuer(store=store, clock=clock, default_ttl=ttl, entropy=entropy, issuer=settings.jwt.issuer)
        key = settings.jwt.key_kind
        lines.append(
            TokenLine(jwt, key_kind=key, lifetime=settings.ca_ttl, entropy=entropy)
            if upstream is None
            else UpstreamTokenLine(
                jwt, key_kind=key, lifetime=settings.ca_ttl, entropy=entropy, upstream=upstream, clock=clock
            )
        )
    if settings.wit is not None:
        wit = WitIssuer(store=store, clock=clock, default_ttl=int(settings.wit.default_ttl.total_seconds()))
        lines.append(
            TokenLine(wit, key_kind=settings.wit.key_kind, lifetime=settings.ca_ttl, entropy=entropy)
            if upstream is None
            else UpstreamTokenLine(
                wit,
                key_kind=settings.wit.key_kind,
                lifetime=settings.ca_ttl,
                entropy=entropy,
                upstream=upstream,
                clock=clock,
            )
        )
    return Issuers(issuer, jwt, wit), {line.kind: line for line in lines}
