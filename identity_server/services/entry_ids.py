"""The ids that a server gives registration entries: UUIDs of version 4 (RFC 9562 section 5.4), many from one draw.

Random bytes come from the kernel, and asking it for 16 of them is most of what an id costs. An id is no secret: it is
in every answer about the entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_DIGITS: Final = 32
_DRAWN_AT_ONCE: Final = 128
"""A system call gets the random bytes of so many ids; those that are not used are used next time."""
_VARIANTS: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
"""Two bits of this digit are the variant (RFC 9562 section 4.1), two are random."""


class EntryIds:
    """Called for each new id. For one thread of one process."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._drawn = ""
        self._used = 0

    def __call__(self) -> str:
        """A fresh id, and nobody else's."""
        begin = self._used
        if begin >= len(self._drawn):
            self._drawn, begin = self._entropy(_DIGITS // 2 * _DRAWN_AT_ONCE).hex(), 0
        self._used = end = begin + _DIGITS
        d = self._drawn[begin:end]
        return f"{d[:8]}-{d[8:12]}-4{d[13:16]}-{_VARIANTS[d[16]]}{d[17:20]}-{d[20:]}"
