"""Signing leaves with whatever authority is active. Runs inline on the event loop: about 0.2 ms a leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509

from identity_server.domain.authority import Authority
from identity_server.domain.body import Bodies
from identity_server.domain.issuance import parent_of, sign
from identity_server.domain.profiles import Parent, Profile, plan_leaf
from identity_server.domain.published import published_ids, signing_ids
from identity_server.domain.rotation import expiry_floor
from identity_server.ports import Store
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import PrivateKey, PublicKey, spki_der, subject_key_id
from spiffe_core.dns_name import check_dns_name
from spiffe_core.errors import CorruptState, InvalidCsr, InvalidRequest, Unavailable
from spiffe_core.spiffe_id import SpiffeId

_SERIAL_BYTES = 16


@dataclass(frozen=True, slots=True)
class IssuedX509:
    """A signed leaf: certificates leaf first without the root, decimal serial, unix expiry."""

    chain: tuple[bytes, ...]
    spiffe_id: SpiffeId
    serial: str
    not_after: int


@dataclass(frozen=True, slots=True)
class Signer:
    """An authority with its key: what signing needs, parsed once."""

    authority: Authority
    parent: Parent
    key: PrivateKey = field(repr=False)
    bodies: Bodies = field(default_factory=Bodies, compare=False, repr=False)

    @classmethod
    def of(cls, authority: Authority, key: PrivateKey) -> Signer:
        """Pair an authority with its key.

        Raises:
            CorruptState: the key is not the certificate's.
        """
        parent = parent_of(authority.certificate)
        if spki_der(key.public_key()) != parent.spki:
            raise CorruptState(
                f"the key in slot {authority.key_slot} is not that of authority {authority.authority_id}"
            )
        return cls(authority, parent, key)


class Issuer:
    """Signs leaves by profile. `signer` is swapped by the owner of the authorities; None means nobody may sign."""

    def __init__(
        self, *, store: Store, clock: Clock, entropy: Callable[[int], bytes], default_ttls: dict[Profile, int]
    ) -> None:
        self._store, self._clock, self._entropy = store, clock, entropy
        self._default_ttls = default_ttls
        self.signer: Signer | None = None
        self._issued_at = 0
        self._bundle: TrustBundle | None = None
        self._signing: frozenset[str] = frozenset()
        self._taken: frozenset[str] = frozenset()

    def issue(
        self,
        profile: str,
        spiffe_id: SpiffeId,
        public_key: PublicKey,
        *,
        ttl: int = 0,
        dns_names: Sequence[str] = (),
        subject: x509.Name | None = None,
    ) -> IssuedX509:
        """Sign one leaf for the "workload", "agent" or "server" profile; `ttl` 0 is the profile's default.

        Raises:
            InvalidRequest: the id, key, names or ttl may not be certified; names the field.
            Unavailable: no authority is active.
        """
        kind = Profile(profile)
        signer = self.signer
        self._look_at_bundle()
        if signer is None or signer.authority.authority_id not in self._signing:
            raise Unavailable("no signing authority is active; one is being prepared, try again shortly")
        if ttl < 0:
            raise InvalidRequest("ttl: must not be negative; 0 means the default", field="ttl")
        names = tuple(check_dns_name(name, field="dns_names") for name in dns_names)
        seconds = ttl or self._default_ttls.get(kind, 0)
        now = int(self._clock.now().timestamp())
        plan = plan_leaf(
            kind,
            signer.parent,
            spiffe_id,
            public_key,
            ttl=seconds,
            now=now,
            serial=draw_serial(self._entropy),
            dns_names=names,
            subject=subject,
            at_least_until=expiry_floor(self._issued_at, now, seconds),
        )
        if plan.key_id.hex() in self._taken:
            raise InvalidCsr("public_key: this is the key of a signing authority; make a new key", field="public_key")
        leaf = sign(signer.bodies.prepare(plan), signer.key)
        if not expiry_floor(self._issued_at, now, 1):
            self._issued_at = now
        return IssuedX509((leaf, *signer.authority.upstream_chain), spiffe_id, str(plan.serial), plan.not_after)

    def _look_at_bundle(self) -> None:
        """Who may sign, and whose keys are no subject's: the authorities in our stored bundle, of every server and kind."""
        bundles = self._store.state.value.bundles
        own = bundles.own if bundles is not None else None
        if own is self._bundle:
            return
        self._bundle, self._signing = own, signing_ids(own, "x509")
        tokens = (*own.jwt_authorities, *own.wit_authorities) if own is not None else ()
        self._taken = published_ids(own, "x509") | {subject_key_id(one.key).hex() for one in tokens}  # N-C-07


def draw_serial(entropy: Callable[[int], bytes]) -> int:
    """A random serial number in [1, 2^128 - 1]."""
    return int.from_bytes(entropy(_SERIAL_BYTES)) or 1
