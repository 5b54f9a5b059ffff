"""The JWT-SVIDs an agent holds, bounded twice: in all, and for each entry.

A workload chooses the audiences it asks for. The bound for one entry keeps a workload that asks for ever new ones from
pushing out the tokens of the others; the bound on all keeps memory flat. In both the one used longest ago goes first.
Times are seconds on the agent's steady line.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from node_agent.domain.entry_cache import Stamp
from spiffe_core.jwt_svid import JwtSvid


class TokenKey(NamedTuple):
    """What a token is held for: an entry, and audiences in alphabetical order (their order means nothing)."""

    entry_id: str
    audience: tuple[str, ...]


@dataclass(slots=True)
class HeldToken:
    """A token, the version of the entry it was made for, the key that signed it, and its times.

    `used` says that someone asked for it since it was fetched: only such a token is refreshed ahead.
    """

    svid: JwtSvid = field(repr=False)
    stamp: Stamp
    key_id: str
    renew_at: float
    ends_at: float
    used: bool = False


class TokenCache:
    """Tokens by key; the most recently used last."""

    def __init__(self, *, most: int, most_per_entry: int) -> None:
        if most < 1 or most_per_entry < 1:
            raise ValueError("a cache holds at least one token")
        self._most, self._most_per_entry = most, most_per_entry
        self._held: OrderedDict[TokenKey, HeldToken] = OrderedDict()
        self._of: dict[str, OrderedDict[TokenKey, None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: TokenKey) -> HeldToken | None:
        """The token, now the most recently used one."""
        held = self._held.get(key)
        if held is not None:
            self._held.move_to_end(key)
            self._of[key.entry_id].move_to_end(key)
        return held

    def peek(self, key: TokenKey) -> HeldToken | None:
        """The token, without counting as a use."""
        return self._held.get(key)

    def put(self, key: TokenKey, token: HeldToken) -> None:
        """Hold a token; others go if there are too many."""
        known = key in self._held
        self._held[key] = token
        own = self._of.setdefault(key.entry_id, OrderedDict())
        own[key] = None
        if not known:
            self._held.move_to_end(key)
        if len(own) > self._most_per_entry:
            self.drop(next(iter(own)))
        if len(self._held) > self._most:
            self.drop(next(iter(self._held)))

    def drop(self, key: TokenKey) -> None:
        """Forget a token; one that is not held is passed over."""
        if self._held.pop(key, None) is None:
            return
        own = self._of[key.entry_id]
        del own[key]
        if not own:
            del self._of[key.entry_id]

    def drop_where(self, unwanted: Callable[[TokenKey, HeldToken], bool]) -> int:
        """Forget every token `unwanted` says so of; returns how many."""
        gone = [key for key, token in self._held.items() if unwanted(key, token)]
        for key in gone:
            self.drop(key)
        return len(gone)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._of.clear()
