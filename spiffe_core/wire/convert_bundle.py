"""Trust bundles as messages, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from spiffe_core.bundle import MAX_AUTHORITIES, JwtAuthority, TrustBundle, WitAuthority, X509Authority
from spiffe_core.errors import InvalidBundle, InvalidRequest
from spiffe_core.wire._gen.spire.api.types import bundle_pb2
from spiffe_core.wire.convert_ids import certificate_from_proto, check_count, trust_domain_from_proto
from spiffe_core.wire.masks import masked

Message = TypeVar("Message")
Value = TypeVar("Value")


def bundle_to_proto(bundle: TrustBundle, mask: bundle_pb2.BundleMask | None = None) -> bundle_pb2.Bundle:
    """The bundle with the fields that `mask` asks for; None asks for all."""
    message = bundle_pb2.Bundle(
        trust_domain=bundle.trust_domain.name,
        x509_authorities=x509_authorities_to_proto(bundle.x509_authorities),
        jwt_authorities=jwt_authorities_to_proto(bundle.jwt_authorities),
        wit_authorities=wit_authorities_to_proto(bundle.wit_authorities),
        refresh_hint=bundle.refresh_hint,
        sequence_number=bundle.sequence,
    )
    return message if mask is None else masked(message, mask, "trust_domain")


def x509_authorities_to_proto(authorities: Iterable[X509Authority]) -> list[bundle_pb2.X509Certificate]:
    """Certificate authorities as messages."""
    return [bundle_pb2.X509Certificate(asn1=authority.der, tainted=authority.tainted) for authority in authorities]


def jwt_authorities_to_proto(authorities: Iterable[JwtAuthority]) -> list[bundle_pb2.JWTKey]:
    """JWT signing keys as messages."""
    return [
        bundle_pb2.JWTKey(public_key=key.public_key, key_id=key.key_id, expires_at=key.expires_at, tainted=key.tainted)
        for key in authorities
    ]


def wit_authorities_to_proto(authorities: Iterable[WitAuthority]) -> list[bundle_pb2.WITKey]:
    """WIT signing keys as messages."""
    return [
        bundle_pb2.WITKey(public_key=key.public_key, key_id=key.key_id, expires_at=key.expires_at, tainted=key.tainted)
        for key in authorities
    ]


def bundle_from_proto(message: bundle_pb2.Bundle, mask: bundle_pb2.BundleMask | None = None) -> TrustBundle:
    """A bundle out of a message; with a mask only the fields it names are read, the others are empty.

    Raises:
        InvalidBundle: naming the field and the rule.
    """
    read = message if mask is None else masked(message, mask, "trust_domain")
    try:
        return TrustBundle(
            trust_domain=trust_domain_from_proto(read.trust_domain),
            x509_authorities=x509_authorities_from_proto(read.x509_authorities),
            jwt_authorities=jwt_authorities_from_proto(read.jwt_authorities),
            wit_authorities=wit_authorities_from_proto(read.wit_authorities),
            sequence=read.sequence_number,
            refresh_hint=read.refresh_hint,
        )
    except InvalidBundle:
        raise
    except InvalidRequest as refusal:
        raise InvalidBundle(refusal.public, field=refusal.field) from None


def x509_authorities_from_proto(
    messages: Sequence[bundle_pb2.X509Certificate], *, field: str = "x509_authorities"
) -> tuple[X509Authority, ...]:
    """Certificate authorities, each exactly one DER certificate."""
    return _each(field, messages, _x509_authority)


def jwt_authorities_from_proto(
    messages: Sequence[bundle_pb2.JWTKey], *, field: str = "jwt_authorities"
) -> tuple[JwtAuthority, ...]:
    """JWT signing keys."""
    return _each(field, messages, _jwt_authority)


def wit_authorities_from_proto(
    messages: Sequence[bundle_pb2.WITKey], *, field: str = "wit_authorities"
) -> tuple[WitAuthority, ...]:
    """WIT signing keys."""
    return _each(field, messages, _wit_authority)


def _each(field: str, messages: Sequence[Message], read: Callable[[Message, str], Value]) -> tuple[Value, ...]:
    check_count(field, len(messages), MAX_AUTHORITIES, InvalidBundle)
    values = []
    for index, message in enumerate(messages):
        place = f"{field}[{index}]"
        try:
            values.append(read(message, place))
        except InvalidRequest as refusal:
            text = refusal.public if refusal.public.startswith(place) else f"{place}: {refusal.public}"
            raise InvalidBundle(text, field=place) from None
    return tuple(values)


def _x509_authority(message: bundle_pb2.X509Certificate, field: str) -> X509Authority:
    return X509Authority(certificate_from_proto(message.asn1, field=f"{field}.asn1"), tainted=message.tainted)


def _jwt_authority(message: bundle_pb2.JWTKey, _field: str) -> JwtAuthority:
    return JwtAuthority(message.key_id, message.public_key, expires_at=message.expires_at, tainted=message.tainted)


def _wit_authority(message: bundle_pb2.WITKey, _field: str) -> WitAuthority:
    return WitAuthority(message.key_id, message.public_key, expires_at=message.expires_at, tainted=message.tainted)
