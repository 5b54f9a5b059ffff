"""Batch calls: one result per item, in the order of the request (spire_wire section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from spiffe_core.errors import IdentityError, InvalidRequest

T = TypeVar("T")
R = TypeVar("R")


async def read_each(
    messages: Iterable[Any], read: Callable[[Any], T], refused: Callable[[str, IdentityError], None]
) -> list[T | IdentityError]:
    """Read every item, giving way to other calls in between; one that cannot be read stands as its own refusal.

    Items are trust domains' names or messages about one; `refused` is told the name of each that cannot be read.
    """
    found: list[T | IdentityError] = []
    for message in messages:
        try:
            found.append(read(message))
        except InvalidRequest as error:
            found.append(error)
            refused(message if isinstance(message, str) else message.trust_domain, error)
        await asyncio.sleep(0)
    return found


async def completed(
    read: Sequence[T | IdentityError], act: Callable[[list[T]], Awaitable[Sequence[R]]]
) -> list[R | IdentityError]:
    """What became of every item: its refusal if it could not be read, else what `act` answers for it."""
    answers = iter(await act([item for item in read if not isinstance(item, IdentityError)]))
    return [item if isinstance(item, IdentityError) else next(answers) for item in read]


def worded(words: str, read: Callable[[], T]) -> T:
    """Run `read`; a refusal of it begins with `words`."""
    try:
        return read()
    except InvalidRequest as error:
        raise InvalidRequest(f"{words}: {error.public}", field=error.field) from None
