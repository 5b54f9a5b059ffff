"""Signing tokens (JWT-SVIDs and WIT-SVIDs) with whatever key is active. Runs inline on the event loop: some 50 µs each.

As with certificates, nothing is signed by a key whose public half is not in the stored bundle or is tainted there,
checked for each token, and no token outlives its key (N-C-21).
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from identity_server.domain.authority import Authority, AuthorityKind
from identity_server.domain.published import signing_ids
from identity_server.ports import Store
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.jose import algorithm_of, encode_part, sign_compact
from spiffe_core.crypto.keys import PrivateKey, spki_der
from spiffe_core.errors import CorruptState, InvalidRequest, Unavailable
from spiffe_core.jwt_svid import Audience, JwtSvid, jwt_claims, jwt_header
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wit_svid import ConfirmationKey, WitSvid, wit_claims, wit_header

_ID_BYTES = 16
Header = Callable[[str, str], dict[str, object]]


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """An authority with its key and the header that all its tokens share, encoded once."""

    authority: Authority
    header: str
    key: PrivateKey = field(repr=False)

    @classmethod
    def of(cls, authority: Authority, key: PrivateKey) -> TokenSigner:
        """Pair an authority with its key.

        Raises:
            CorruptState: the key is not the authority's.
        """
        public = key.public_key()
        if spki_der(public) != authority.certificate:
            raise CorruptState(
                f"the key in slot {authority.key_slot} is not that of authority {authority.authority_id}"
            )
        make: Header = jwt_header if authority.kind == "jwt" else wit_header
        return cls(authority, encode_part(make(algorithm_of(public), authority.authority_id)), key)


@dataclass(frozen=True, slots=True)
class Issued:
    """What the audit record says of a token besides its contents; `jti` is empty when there is none."""

    key_id: str
    jti: str = ""


class _TokenIssuer:
    """What both kinds of issuer share. `signer` is swapped by the owner of the authorities; None: nobody may sign."""

    kind: ClassVar[AuthorityKind]
    what: ClassVar[str]

    def __init__(self, *, store: Store, clock: Clock, default_ttl: int) -> None:
        self._store, self._clock = store, clock
        self.default_ttl = default_ttl
        """The life in seconds of what is asked for without one."""
        self.signer: TokenSigner | None = None
        self._bundle: TrustBundle | None = None
        self._signing: frozenset[str] = frozenset()

    def _active(self) -> TokenSigner:
        """The signer, if its key stands untainted in the stored bundle of this moment."""
        bundles = self._store.state.value.bundles
        own = bundles.own if bundles is not None else None
        if own is not self._bundle:
            self._bundle, self._signing = own, signing_ids(own, self.kind)
        signer = self.signer
        if signer is None or signer.authority.authority_id not in self._signing:
            raise Unavailable(f"no {self.what} signing key is active; one is being prepared, try again shortly")
        return signer

    def _life(self, signer: TokenSigner, ttl: int) -> tuple[int, int]:
        """From when until when a token is good, in whole seconds: never longer than its key (S37)."""
        if ttl < 0:
            raise InvalidRequest("ttl: must not be negative; 0 means the default", field="ttl")
        now = int(self._clock.now().timestamp())
        end = min(now + (ttl or self.default_ttl), signer.authority.not_after)
        if end <= now:
            raise Unavailable(
                f"the {self.what} signing key has expired; a new one is being prepared, try again shortly"
            )
        return now, end


class JwtIssuer(_TokenIssuer):
    """Signs JWT-SVIDs. `issuer` is the `iss` claim, "" for none."""

    kind = "jwt"
    what = "JWT"

    def __init__(
        self, *, store: Store, clock: Clock, default_ttl: int, entropy: Callable[[int], bytes], issuer: str = ""
    ) -> None:
        super().__init__(store=store, clock=clock, default_ttl=default_ttl)
        self._entropy, self._issuer = entropy, issuer

    def issue(
        self, spiffe_id: SpiffeId, audience: Audience, *, ttl: int = 0, with_jti: bool = False
    ) -> tuple[JwtSvid, Issued]:
        """Sign one token; `ttl` 0 is the default.

        Raises:
            InvalidRequest: the ttl is not acceptable.
            Unavailable: no key is active.
        """
        signer = self._active()
        start, end = self._life(signer, ttl)
        jti = _unique_id(self._entropy) if with_jti else ""
        claims = jwt_claims(spiffe_id, audience, issued_at=start, expires_at=end, issuer=self._issuer, jti=jti)
        token = sign_compact(signer.header, encode_part(claims), signer.key)
        return JwtSvid(token, spiffe_id, audience, start, end), Issued(signer.authority.authority_id, jti)


class WitIssuer(_TokenIssuer):
    """Signs WIT-SVIDs."""

    kind = "wit"
    what = "WIT"

    def issue(self, spiffe_id: SpiffeId, key: ConfirmationKey, *, ttl: int = 0) -> tuple[WitSvid, Issued]:
        """Sign one token that binds `spiffe_id` to the workload's key; `ttl` 0 is the default.

        Raises:
            InvalidRequest: the ttl is not acceptable, or the key is an authority's own.
            Unavailable: no key is active.
        """
        signer = self._active()
        start, end = self._life(signer, ttl)
        if spki_der(key.public_key) == signer.authority.certificate:
            raise InvalidRequest(
                "public_key: this is the key of a signing authority; make a new key", field="public_key"
            )
        claims = wit_claims(spiffe_id, key, issued_at=start, expires_at=end)
        token = sign_compact(signer.header, encode_part(claims), signer.key)
        return WitSvid(token, spiffe_id, start, end), Issued(signer.authority.authority_id)


def _unique_id(entropy: Callable[[int], bytes]) -> str:
    """A token's id in SPIRE's form: the bytes of a random UUID in unpadded base64url (spire_features section 14)."""
    return base64.urlsafe_b64encode(uuid.UUID(bytes=entropy(_ID_BYTES), version=4).bytes).rstrip(b"=").decode()
