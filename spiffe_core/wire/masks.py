"""Field masks (spire_wire section 3): messages of booleans, one per field of the message they speak of.

An absent mask means every field. The identity field (`id`, `trust_domain`) has no bit and is always kept.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
K = TypeVar("K", bound=Message)


def mask_of(request: Message, field: str, kind: type[K]) -> K | None:
    """The mask in a request, or None when it has none."""
    mask = getattr(request, field) if request.HasField(field) else None
    return mask if isinstance(mask, kind) else None


def flagged(mask: Message) -> tuple[str, ...]:
    """The names of the fields that a mask asks for."""
    return tuple(bit.name for bit in mask.DESCRIPTOR.fields if getattr(mask, bit.name))


def overlay(onto: M, source: M, fields: tuple[str, ...]) -> M:
    """A copy of `onto` in which `fields` are those of `source`, zero values and absence included."""
    result = type(onto)()
    result.CopyFrom(onto)
    taken = type(onto)()
    taken.CopyFrom(source)
    for field in source.DESCRIPTOR.fields:
        if field.name in fields:
            result.ClearField(field.name)
        else:
            taken.ClearField(field.name)
    result.MergeFrom(taken)
    return result


def masked(message: M, mask: Message | None, identity: str) -> M:
    """A copy of `message` with the fields that `mask` asks for, and with `identity`."""
    if mask is None:
        result = type(message)()
        result.CopyFrom(message)
        return result
    return overlay(type(message)(), message, (identity, *flagged(mask)))
