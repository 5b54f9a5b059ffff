"""What server and worker say to each other: frames of a JSON header and byte strings.

A frame is the length of what follows and the length of the header (four bytes each, big-endian), the header, and the
byte strings one after the other; `sizes` in the header says where each ends.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from identity_server.domain.leaf_order import LeafOrder, SignedLeaf, SigningKey
from identity_server.domain.profiles import Profile
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

PREFIX = struct.Struct(">II")
MAX_FRAME_BYTES = 16 * 1024 * 1024
"""A chunk of requests of the largest size, and room."""


class Frame(NamedTuple):
    """A header and its byte strings."""

    header: dict[str, Any]
    blobs: tuple[bytes, ...]


def encode(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """A frame, complete.

    Raises:
        ValueError: it is too large.
    """
    head = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}, separators=(",", ":")).encode()
    body = b"".join((head, *blobs))
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError("a frame is too large")
    return PREFIX.pack(len(body), len(head)) + body


def sizes(prefix: bytes) -> tuple[int, int]:
    """The lengths of a frame and of its header.

    Raises:
        ValueError: they cannot be.
    """
    body, head = PREFIX.unpack(prefix)
    if not head <= body <= MAX_FRAME_BYTES:
        raise ValueError("a frame has impossible lengths")
    return body, head


def decode(body: bytes, head: int) -> Frame:
    """The frame of a body.

    Raises:
        ValueError, LookupError, TypeError: it is none.
    """
    header = json.loads(body[:head])
    blobs: list[bytes] = []
    position = head
    for size in header.pop("sizes"):
        blobs.append(body[position : position + size])
        position += size
    if position != len(body):
        raise ValueError("a frame's parts do not add up")
    return Frame(header, tuple(blobs))


def key_frame(key: SigningKey, pkcs8: bytes, taken: frozenset[str]) -> bytes:
    """From now on sign with this key, for no longer than it may; `taken` are key identifiers no subject may have."""
    header = {"do": "key", "not_after": key.parent.not_after, "taken": sorted(taken)}
    return encode(header, (key.certificate, pkcs8))


def sign_frame(number: int, orders: Sequence[tuple[LeafOrder, bytes]]) -> bytes:
    """Sign these; each order is of the workload profile and comes with its request."""
    listed = [
        [order.spiffe_id.path, order.ttl, order.now, order.serial, order.at_least_until, order.dns_names]
        for order, _ in orders
    ]
    return encode({"do": "sign", "number": number, "orders": listed}, [csr for _, csr in orders])


def order_of(trust_domain: TrustDomain, listed: Sequence[Any]) -> LeafOrder:
    """The order in a `sign_frame`."""
    path, ttl, now, serial, floor, names = listed
    return LeafOrder(Profile.WORKLOAD, SpiffeId(trust_domain, path), ttl, now, serial, floor, tuple(names))


def leaves_frame(number: int, leaves: Sequence[SignedLeaf | None]) -> bytes:
    """The answer to `sign_frame`; None for what was not signed."""
    ends = [0 if leaf is None else leaf.not_after for leaf in leaves]
    return encode({"number": number, "ends": ends}, [b"" if leaf is None else leaf.der for leaf in leaves])


def leaves_of(frame: Frame) -> tuple[int, list[SignedLeaf | None]]:
    """The number and the leaves in a `leaves_frame`."""
    ends = frame.header["ends"]
    return frame.header["number"], [
        SignedLeaf(der, end) if der else None for der, end in zip(frame.blobs, ends, strict=True)
    ]
