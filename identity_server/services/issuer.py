"""Signing leaves with whatever authority is active. Runs inline on the event loop: about 0.2 ms a leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cryptography import x509

from identity_server.domain.authority import Authority
from identity_server.domain.body import Bodies
from identity_server.domain.issuance import ReadyToSign, parent_of, prepare, sign
from identity_server.domain.leaf_order import LeafOrder, SignedLeaf, SigningKey, finished, prepared
from identity_server.domain.minted_ca import room_below
from identity_server.domain.profiles import Parent, Plan, Profile, downstream_subject, plan_ca
from identity_server.domain.published import published_ids, signing_ids
from identity_server.domain.rotation import expiry_floor
from identity_server.domain.upstream import MAX_CHAIN
from identity_server.ports import Store
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.crypto.keys import AuthorityKey, PublicKey, SubjectKey, spki_der, subject_key_id
from spiffe_core.dns_name import check_dns_name
from spiffe_core.errors import CorruptState, InvalidCsr, InvalidRequest, PreconditionFailed, Unavailable
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
    key: AuthorityKey = field(repr=False)
    room_below: bool = True
    """Whether the certificates above and the authority's own allow a CA below it."""
    bodies: Bodies = field(default_factory=Bodies, compare=False, repr=False)

    @classmethod
    def of(cls, authority: Authority, key: AuthorityKey) -> Signer:
        """Pair an authority with its key.

        Raises:
            CorruptState: the key is not the certificate's.
        """
        parent = parent_of(authority.certificate)
        if spki_der(key.public_key()) != parent.spki:
            raise CorruptState(
                f"the key in slot {authority.key_slot} is not that of authority {authority.authority_id}"
            )
        chain = [read_certificate(der) for der in authority.upstream_chain or (authority.certificate,)]
        return cls(
            authority,
            replace(parent, not_after=min(parent.not_after, authority.not_after)),
            key,
            room_below=len(chain) < MAX_CHAIN and room_below(chain),
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """A signer whose authority stands in the stored bundle, and the key identifiers (hex) that no subject may have."""

    signer: Signer
    key: SigningKey
    taken: frozenset[str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A leaf that passed the lint, and who signs it."""

    standing: Standing
    order: LeafOrder
    ticket: ReadyToSign


class Issuer:
    """Signs leaves by profile. `signer` is swapped by the owner of the authorities; None means nobody may sign."""

    def __init__(
        self, *, store: Store, clock: Clock, entropy: Callable[[int], bytes], default_ttls: dict[Profile, int]
    ) -> None:
        self._store, self._clock, self._entropy = store, clock, entropy
        self.default_ttls = default_ttls
        """The life in seconds of what is asked for without one, by profile."""
        self.signer: Signer | None = None
        self._issued_at = 0
        self._bundle: TrustBundle | None = None
        self._journal: tuple[Authority, ...] = ()
        self._signing: frozenset[str] = frozenset()
        self._taken: frozenset[str] = frozenset()
        self._standing: Standing | None = None

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
        order = self.order(Profile(profile), spiffe_id, ttl=ttl, dns_names=dns_names, subject=subject)
        return self.finish(self.prepare(order, SubjectKey.of(public_key)))

    def prepare(self, order: LeafOrder, key: SubjectKey) -> Prepared:
        """Everything of `issue` but the signature, which `finish` makes.

        Raises:
            InvalidRequest: the id, key, names or ttl may not be certified; names the field.
            Unavailable: no authority is active.
        """
        standing = self.standing()
        return Prepared(standing, order, prepared(standing.key, order, key, standing.taken))

    def finish(self, what: Prepared) -> IssuedX509:
        """Sign what was prepared, if the same authority still may.

        Raises:
            Unavailable: it may not.
        """
        if self.standing() is not what.standing:
            raise Unavailable("the signing authority was replaced meanwhile, try again")
        return self.issued(what.standing, what.order, finished(what.standing.key, what.ticket))

    def standing(self) -> Standing:
        """Who signs at this moment, and whose keys may be no subject's; the same object as long as nothing changes.

        Raises:
            Unavailable: no authority is active.
        """
        signer = self._ready()
        standing = self._standing
        if standing is None or standing.signer is not signer or standing.taken is not self._taken:
            key = SigningKey(signer.authority.certificate, signer.parent, signer.key, signer.bodies)
            standing = self._standing = Standing(signer, key, self._taken)
        return standing

    def order(
        self,
        profile: Profile,
        spiffe_id: SpiffeId,
        *,
        ttl: int = 0,
        dns_names: Sequence[str] = (),
        subject: x509.Name | None = None,
    ) -> LeafOrder:
        """What is to be signed, before anybody looks at the key it is for.

        Raises:
            InvalidRequest: the names or ttl may not be certified; names the field.
        """
        if ttl < 0:
            raise InvalidRequest("ttl: must not be negative; 0 means the default", field="ttl")
        names = tuple(check_dns_name(name, field="dns_names") for name in dns_names) if dns_names else ()
        seconds = ttl or self.default_ttls.get(profile, 0)
        now = int(self._clock.now().timestamp())
        floor = expiry_floor(self._issued_at, now, seconds)
        return LeafOrder(profile, spiffe_id, seconds, now, draw_serial(self._entropy), floor, names, subject)

    def issued(self, standing: Standing, order: LeafOrder, leaf: SignedLeaf) -> IssuedX509:
        """The answer made of an order and its leaf."""
        if not expiry_floor(self._issued_at, order.now, 1):
            self._issued_at = order.now
        chain = (leaf.der, *standing.signer.authority.upstream_chain)
        return IssuedX509(chain, order.spiffe_id, str(order.serial), leaf.not_after)

    def issue_ca(self, public_key: PublicKey, ttl: int) -> IssuedX509:
        """Sign a CA below ours, for a downstream server.

        Raises:
            InvalidRequest: the key may not be certified.
            PreconditionFailed: a path length above allows no CA below ours.
            Unavailable: no authority is active.
        """
        signer = self._ready()
        above = signer.authority.upstream_chain
        if not signer.room_below:
            raise PreconditionFailed("a path length above this server's CA certificate allows no CA below it")
        plan = plan_ca(
            signer.parent.trust_domain,
            public_key,
            lifetime=ttl,
            now=int(self._clock.now().timestamp()),
            serial=draw_serial(self._entropy),
            subject=downstream_subject(signer.parent.name, 1 + len(above)),
            parent=signer.parent,
        )
        self._refuse_taken(plan)
        return IssuedX509((sign(prepare(plan), signer.key), *above), plan.spiffe_id, str(plan.serial), plan.not_after)

    def _ready(self) -> Signer:
        """The signer, if its certificate or root stands untainted in the stored bundle of this moment."""
        signer = self.signer
        self._look_at_bundle()
        if signer is None or signer.authority.published_as not in self._signing:
            raise Unavailable("no signing authority is active; one is being prepared, try again shortly")
        return signer

    def _refuse_taken(self, plan: Plan) -> None:
        if plan.key_id.hex() in self._taken:
            raise InvalidCsr("public_key: this is the key of a signing authority; make a new key", field="public_key")

    def _look_at_bundle(self) -> None:
        """Who may sign, and whose keys are no subject's: the authorities in the stored bundle, whichever server's."""
        state = self._store.state.value
        own = state.bundles.own if state.bundles is not None else None
        if own is self._bundle and state.authorities is self._journal:
            return
        self._journal = state.authorities
        self._bundle, self._signing = own, signing_ids(own, "x509")
        tokens = (*own.jwt_authorities, *own.wit_authorities) if own is not None else ()
        ours = {one.authority_id for one in state.authorities if one.kind == "x509"}
        self._taken = published_ids(own, "x509") | ours | {subject_key_id(one.key).hex() for one in tokens}  # N-C-07


def draw_serial(entropy: Callable[[int], bytes]) -> int:
    """A random serial number in [1, 2^128 - 1]."""
    return int.from_bytes(entropy(_SERIAL_BYTES)) or 1
