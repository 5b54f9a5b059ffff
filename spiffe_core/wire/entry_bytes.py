"""Registration entries as the finished bytes of their message, without making the message.

Stores and batches need an entry's bytes for each entry there is. These are the bytes `entry_to_proto` gives when it is
serialized: fields in the order of their numbers, those with default values left out (protobuf, "Encoding"). A property
test holds the two to each other.
"""

from __future__ import annotations

import functools
from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from spiffe_core.entry import RegistrationEntry
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.types import entry_pb2, selector_pb2, spiffeid_pb2

_VARINT, _SIZED = 0, 2
"""Wire types: a number, and bytes that follow their length."""
_SEVEN_BITS: Final = 127
_SET: Final = b"\1"


def varint(number: int) -> bytes:
    """A number that is not negative: seven bits a byte, the lowest first."""
    made = bytearray()
    while number > _SEVEN_BITS:
        made.append(number & _SEVEN_BITS | _SEVEN_BITS + 1)
        number >>= 7
    made.append(number)
    return bytes(made)


def tags(message: type[Message]) -> dict[str, bytes]:
    """How each field begins on the wire, by its name. Only for numbers, flags, text, bytes and messages."""
    return {
        field.name: varint(
            field.number << 3 | (_SIZED if field.cpp_type in {_MESSAGE, FieldDescriptor.CPPTYPE_STRING} else _VARINT)
        )
        for field in message.DESCRIPTOR.fields
    }


def sized(tag: bytes, content: bytes) -> bytes:
    """A field of text, bytes or a message."""
    length = len(content)
    return b"%b%c%b" % (tag, length, content) if length <= _SEVEN_BITS else b"".join((tag, varint(length), content))


_MESSAGE: Final = FieldDescriptor.CPPTYPE_MESSAGE
_FIELD: Final = tags(entry_pb2.Entry)
_SPIFFE_ID: Final = tags(spiffeid_pb2.SPIFFEID)
_SELECTOR: Final = tags(selector_pb2.Selector)
_ATTRIBUTES: Final = tags(entry_pb2.Entry.AdditionalAttributes)


def entry_bytes(entry: RegistrationEntry) -> bytes:
    """The complete entry. Equal entries have equal bytes."""
    return entry.encoded(_encode)


def _encode(entry: RegistrationEntry) -> bytes:
    tag = _FIELD
    parts = [
        sized(tag["id"], entry.id.encode()),
        sized(tag["spiffe_id"], _spiffe_id(entry.spiffe_id)),
        _parent_id(entry.parent_id),
    ]
    for selector in entry.ordered_selectors:
        kind = sized(_SELECTOR["type"], selector.type.encode())
        parts.append(sized(tag["selectors"], kind + sized(_SELECTOR["value"], selector.value.encode())))
    if entry.x509_svid_ttl:
        parts.append(tag["x509_svid_ttl"] + varint(entry.x509_svid_ttl))
    if entry.federates_with or entry.admin or entry.downstream or entry.expires_at or entry.dns_names:
        parts += _privileges(entry)
    if entry.revision_number or entry.store_svid or entry.jwt_svid_ttl or entry.hint:
        parts += _manner(entry)
    if entry.created_at:
        parts.append(_created_at(entry.created_at))
    if entry.disable_x509_svid_prefetch or entry.jwt_svid_include_jti:
        names = ("disable_x509_svid_prefetch", "jwt_svid_include_jti")
        flags = [_ATTRIBUTES[name] + _SET for name in names if getattr(entry, name)]
        parts.append(sized(tag["additional_attributes"], b"".join(flags)))
    return b"".join(parts)


def _privileges(entry: RegistrationEntry) -> list[bytes]:
    """The fields from `federates_with` to `dns_names`."""
    tag = _FIELD
    parts = [sized(tag["federates_with"], one.name.encode()) for one in entry.federates_with]
    if entry.admin:
        parts.append(tag["admin"] + _SET)
    if entry.downstream:
        parts.append(tag["downstream"] + _SET)
    if entry.expires_at:
        parts.append(tag["expires_at"] + varint(entry.expires_at))
    return parts + [sized(tag["dns_names"], name.encode()) for name in entry.dns_names]


def _manner(entry: RegistrationEntry) -> list[bytes]:
    """The fields from `revision_number` to `hint`."""
    tag = _FIELD
    parts: list[bytes] = []
    if entry.revision_number:
        parts.append(tag["revision_number"] + varint(entry.revision_number))
    if entry.store_svid:
        parts.append(tag["store_svid"] + _SET)
    if entry.jwt_svid_ttl:
        parts.append(tag["jwt_svid_ttl"] + varint(entry.jwt_svid_ttl))
    if entry.hint:
        parts.append(sized(tag["hint"], entry.hint.encode()))
    return parts


def _spiffe_id(spiffe_id: SpiffeId) -> bytes:
    domain = sized(_SPIFFE_ID["trust_domain"], spiffe_id.trust_domain.name.encode())
    return domain + sized(_SPIFFE_ID["path"], spiffe_id.path.encode()) if spiffe_id.path else domain


@functools.lru_cache(maxsize=1024)
def _parent_id(spiffe_id: SpiffeId) -> bytes:
    """Parents repeat."""
    return sized(_FIELD["parent_id"], _spiffe_id(spiffe_id))


@functools.lru_cache(maxsize=1024)
def _created_at(seconds: int) -> bytes:
    """So do the moments in which entries are made."""
    return _FIELD["created_at"] + varint(seconds)
