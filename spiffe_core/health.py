"""How a daemon is, as a value: parts with their troubles, and what follows for probes.

A part that is `degraded` needs a look and takes nothing away from callers: the daemon stays ready. A part that has
`failed` means callers are not served: not ready. `stuck` means that only a restart helps: not live.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Condition(enum.Enum):
    """How one part is."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class Part:
    """One subsystem. `trouble` says what is wrong and what to do; `detail` are numbers and names for people."""

    name: str
    condition: Condition = Condition.OK
    trouble: str = ""
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """All parts of a daemon at one moment."""

    parts: tuple[Part, ...]

    @property
    def live(self) -> bool:
        """False if only a restart helps."""
        return all(part.condition is not Condition.STUCK for part in self.parts)

    @property
    def ready(self) -> bool:
        """True if callers are served."""
        return all(part.condition in {Condition.OK, Condition.DEGRADED} for part in self.parts)

    @property
    def troubles(self) -> dict[str, str]:
        """Part -> what is wrong with it, for those with a trouble."""
        return {part.name: part.trouble for part in self.parts if part.condition is not Condition.OK}

    def document(self) -> dict[str, object]:
        """SPIRE's shape: subsystem -> its state."""
        return {
            part.name: {
                "state": part.condition.value,
                **({"trouble": part.trouble} if part.trouble else {}),
                **part.detail,
            }
            for part in self.parts
        }


def loop_part(lag: float, *, blocked: bool) -> Part:
    """The event loop, as its watchdog sees it."""
    detail = {"lag_seconds": round(lag, 3)}
    if blocked:
        return Part(
            "event_loop", Condition.STUCK, "the event loop does not answer; the log says where it hangs", detail
        )
    if lag > 1.0:
        return Part("event_loop", Condition.DEGRADED, "the event loop answers late; the log says where it hung", detail)
    return Part("event_loop", detail=detail)
