"""The metadata by which our agents and servers tell each other how much of the log they have seen (architecture A8).

A call that carries `muniment-position` is answered with the same key among its trailers: the server's own position, or
nothing of the kind from a server that is not ours. Whoever does not send it is answered as ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

POSITION: Final = "muniment-position"
NONE: Final = "none"
"""What an agent sends that has seen nothing yet."""
MAX_TEXT: Final = 64


def position_in(metadata: Iterable[tuple[str, Any]] | None) -> str | None:
    """The position that metadata carry; None if they carry none, or several, or something too long to be one."""
    found = [value for key, value in metadata if key == POSITION] if metadata else ()
    if len(found) != 1 or not isinstance(found[0], str) or len(found[0]) > MAX_TEXT:
        return None
    return found[0]
