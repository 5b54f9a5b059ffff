"""May an experimental kind of authority sign here? Only if this server's own TLS believes what it signs.

Agents reach the server over TLS, and so would be locked out by an authority that the TLS library of either side cannot
verify: at the moment of its activation, all at once. So before such an authority is made, before it is activated, and
at each start, a throw-away authority of the same kind and profile signs a leaf of the server's profile, and that leaf
has to pass a mutual handshake in memory. A throw-away one, because nothing is signed by a key that is not in the
bundle.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeAlias

from identity_server.domain.agents import SERVER_PATH
from identity_server.domain.issuance import parent_of, prepare, sign
from identity_server.domain.profiles import Profile, plan_ca, plan_leaf
from identity_server.services.issuer import draw_serial
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import KeyKind, generate, generate_authority_key, to_pkcs8
from spiffe_core.errors import PreconditionFailed, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire.rehearsal import rehearse
from spiffe_core.wire.tls import TlsIdentity

SelfTest: TypeAlias = Callable[[KeyKind], None]
"""Raises PreconditionFailed if our own TLS would not believe what an authority of this kind signs."""

_SECONDS = 300


def tls_self_test(trust_domain: TrustDomain, clock: Clock, entropy: Callable[[int], bytes]) -> SelfTest:
    """The self-test of this process. Some 10 ms; blocks, so not for the event loop."""

    def check(kind: KeyKind) -> None:
        now = int(clock.now().timestamp())
        key, leaf_key = generate_authority_key(kind), generate(KeyKind.EC_P256)
        plan = plan_ca(trust_domain, key.public_key(), lifetime=_SECONDS, now=now, serial=draw_serial(entropy))
        authority = sign(prepare(plan), key)
        leaf = plan_leaf(
            Profile.SERVER,
            parent_of(authority),
            SpiffeId(trust_domain, SERVER_PATH),
            leaf_key.public_key(),
            ttl=_SECONDS,
            now=now,
            serial=draw_serial(entropy),
        )
        identity = TlsIdentity((sign(prepare(leaf), key),), to_pkcs8(leaf_key))
        try:
            rehearse(identity, TrustBundle(trust_domain).with_x509_authority(authority), now=clock.now())
        except VerificationFailed as failure:
            raise PreconditionFailed(
                f"ca.key_type: an authority of kind {kind.value} is not activated, because this server's own TLS could "
                f"not verify what it signs ({failure.public}) and no agent could connect. Use a Python whose ssl "
                f"module has OpenSSL 3.5 or later (this one has {ssl.OPENSSL_VERSION}), or another ca.key_type",
                kind=kind.value,
            ) from failure

    return check
