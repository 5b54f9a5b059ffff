"""The life of this server's signing authorities: what may happen next, decided without doing it.

Theory of operation. A server has two slots of each kind, A and B. A slot is empty or holds one authority:

    EMPTY --prepare--> PREPARED --activate--> ACTIVE --retire--> OLD --forget--> EMPTY
                          |  ^                                   | ^
                          |  '------------- prepare -------------' '-- taint (OLD only; repeating it changes nothing)
                          '-- retire --> OLD   (its key is gone, or a newer one takes its place)

`decide(slots, command, now)` returns the events a command causes, or raises `IllegalMove` and nothing has happened.
`apply(slots, event)` cannot fail: it already happened. Every move goes through `MOVES`. The journal in the database
holds the authorities, so loading it (`Slots.of`) and going on is all a restart does.

Two laws hold in every reachable state and are tested as laws: at most one authority is ACTIVE, and an authority becomes
ACTIVE only if its certificate stands in the stored bundle, long enough for relying parties to have fetched it
(architecture A15) unless nothing else could sign meanwhile.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from spiffe_core.errors import CorruptState, PreconditionFailed

SlotName: TypeAlias = Literal["A", "B"]
AuthorityKind: TypeAlias = Literal["x509", "jwt", "wit"]

PROPAGATION_SECONDS = 10
"""How long a published authority stands before it signs: two polls of a stock agent (architecture A15)."""

LATE_SECONDS = 60
"""So long, since it was published, agents and servers are waited for that say what they know and do not know it yet."""

_BACKDATE_SECONDS = 10
_KEY_SLOT_WORDS: dict[AuthorityKind, str] = {"x509": "x509-CA", "jwt": "JWT-Signer", "wit": "WIT-Signer"}


class Status(enum.Enum):
    """What an authority in a slot is for."""

    PREPARED = "prepared"
    ACTIVE = "active"
    OLD = "old"


class IllegalMove(PreconditionFailed):
    """The command does not fit the authority's status; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Authority:
    """One signing authority of one server, as the journal keeps it. Times are unix seconds.

    `authority_id` is the lower-case hex subject key identifier (X.509) or the key id (JWT, WIT). `certificate` is its
    public half: a certificate (X.509) or a SubjectPublicKeyInfo (JWT, WIT), in DER. `published_at` is when it was
    appended to the stored bundle. Below an upstream authority, `upstream_chain` is what goes out with each leaf: the
    certificate and those above it, without the root; `anchor_id` is the key identifier of that root, which stands in
    the bundle in the certificate's stead; and `not_after` is the earliest end of all of them. Both are empty for a
    self-signed authority.
    """

    authority_id: str
    server_id: str
    slot: SlotName
    status: Status
    certificate: bytes
    issued_at: int
    not_after: int
    published_at: int
    kind: AuthorityKind = "x509"
    upstream_chain: tuple[bytes, ...] = ()
    tainted: bool = False
    anchor_id: str = ""

    @property
    def key_slot(self) -> str:
        """The name of its key's slot in the key manager."""
        return key_slot(self.kind, self.slot)

    @property
    def published_as(self) -> str:
        """The id that must stand untainted in the stored bundle for it to sign: its upstream root's, or its own."""
        return self.anchor_id or self.authority_id


def key_slot(kind: AuthorityKind, slot: SlotName) -> str:
    """The key manager's name for a slot: `x509-CA-A`."""
    return f"{_KEY_SLOT_WORDS[kind]}-{slot}"


@dataclass(frozen=True, slots=True)
class Slots:
    """The two slots of one kind on one server."""

    a: Authority | None = None
    b: Authority | None = None

    @classmethod
    def of(cls, journal: Iterable[Authority], kind: AuthorityKind = "x509") -> Slots:
        """The slots a journal describes.

        Raises:
            CorruptState: two authorities in one slot, or two active ones: not a journal this program wrote.
        """
        found: dict[SlotName, Authority] = {}
        for authority in journal:
            if authority.kind != kind:
                continue
            if authority.slot in found:
                raise CorruptState(
                    f"authority journal: two {kind} authorities in slot {authority.slot} of server "
                    f"{authority.server_id}; restore the database from a backup",
                    ids=(found[authority.slot].authority_id, authority.authority_id),
                )
            found[authority.slot] = authority
        slots = cls(found.get("A"), found.get("B"))
        if sum(one.status is Status.ACTIVE for one in slots) > 1:
            raise CorruptState(
                f"authority journal: two active {kind} authorities; restore the database from a backup",
                ids=tuple(one.authority_id for one in slots),
            )
        return slots

    def __iter__(self) -> Iterator[Authority]:
        return (one for one in (self.a, self.b) if one is not None)

    def __getitem__(self, slot: SlotName) -> Authority | None:
        return self.a if slot == "A" else self.b

    def with_slot(self, slot: SlotName, authority: Authority | None) -> Slots:
        """These slots with one of them holding something else."""
        return Slots(authority, self.b) if slot == "A" else Slots(self.a, authority)

    def find(self, authority_id: str) -> Authority | None:
        """The authority with this id, or None."""
        return next((one for one in self if one.authority_id == authority_id), None)

    def _only(self, status: Status) -> Authority | None:
        return next((one for one in self if one.status is status), None)

    @property
    def active(self) -> Authority | None:
        """The authority that signs."""
        return self._only(Status.ACTIVE)

    @property
    def prepared(self) -> Authority | None:
        """The authority that will sign next."""
        return self._only(Status.PREPARED)

    @property
    def free(self) -> SlotName:
        """Where the next authority is made: never the active one's slot, if possible an empty one, else the oldest."""
        if self.active is not None:
            return "B" if self.active.slot == "A" else "A"
        if self.a is None or self.b is None:
            return "A" if self.a is None else "B"
        return (
            "A"
            if (self.a.status is Status.OLD, -self.a.not_after) >= (self.b.status is Status.OLD, -self.b.not_after)
            else "B"
        )


# Commands: what somebody wants.


@dataclass(frozen=True, slots=True)
class Prepare:
    """Put a new authority (status PREPARED) into its slot and into the bundle; below an upstream, its roots."""

    authority: Authority
    roots: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Activate:
    """Let a prepared authority sign. `bundle` are the authority ids in the stored bundle at this moment.

    `waited` is how long it has stood there by a clock that does not jump, for when the wall clock went backwards.
    `acknowledged` says that everybody who has to know it has said that they do.
    """

    authority_id: str
    bundle: frozenset[str]
    waited: float = 0.0
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class Retire:
    """Let an authority sign no more; its certificate stays in the bundle."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Taint:
    """Mark an old authority as no longer to be relied on; everyone below it rotates."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Empty an old authority's slot."""

    authority_id: str


Command: TypeAlias = Prepare | Activate | Retire | Taint | Forget


# Events: what happened.


@dataclass(frozen=True, slots=True)
class Prepared:
    """A new authority stands in its slot, in place of `replaced`."""

    authority: Authority
    replaced: Authority | None
    roots: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Activated:
    """The authority signs from now on."""

    authority: Authority


@dataclass(frozen=True, slots=True)
class Retired:
    """The authority signs no more."""

    authority: Authority


@dataclass(frozen=True, slots=True)
class Tainted:
    """The authority is marked."""

    authority: Authority


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The slot is empty; `authority` is what it held."""

    authority: Authority


Event: TypeAlias = Prepared | Activated | Retired | Tainted | Forgotten

Verb: TypeAlias = Literal["prepare", "activate", "retire", "taint", "forget"]

MOVES: dict[tuple[Status | None, Verb], Status | None] = {
    (None, "prepare"): Status.PREPARED,
    (Status.OLD, "prepare"): Status.PREPARED,
    (Status.PREPARED, "activate"): Status.ACTIVE,
    (Status.PREPARED, "retire"): Status.OLD,
    (Status.ACTIVE, "retire"): Status.OLD,
    (Status.OLD, "taint"): Status.OLD,
    (Status.OLD, "forget"): None,
}


def move(status: Status | None, verb: Verb) -> Status | None:
    """What a slot with this status becomes.

    Raises:
        IllegalMove: the table has no such move.
    """
    try:
        return MOVES[status, verb]
    except KeyError:
        word = status.value if status is not None else "absent"
        raise IllegalMove(f"cannot {verb} an authority that is {word}") from None


def decide(slots: Slots, command: Command, now: int) -> tuple[Event, ...]:
    """The events a command causes at `now`; empty when everything is as wanted already.

    Raises:
        IllegalMove: the command may not happen now; the message says why.
    """
    match command:
        case Prepare():
            return _prepare(slots, command, now)
        case Activate():
            return _activate(slots, command, now)
        case Retire(authority_id):
            found = _known(slots, authority_id)
            if found.status is Status.OLD:
                return ()
            return (Retired(_moved(found, "retire")),)
        case Taint(authority_id):
            found = _known(slots, authority_id)
            marked = replace(_moved(found, "taint"), tainted=True)
            return () if found.tainted else (Tainted(marked),)
        case _:  # Forget
            found = _known(slots, command.authority_id)
            move(found.status, "forget")
            return (Forgotten(found),)


def apply(slots: Slots, event: Event) -> Slots:
    """The slots after an event."""
    match event:
        case Prepared(authority) | Activated(authority) | Retired(authority) | Tainted(authority):
            return slots.with_slot(authority.slot, authority)
        case _:  # Forgotten
            return slots.with_slot(event.authority.slot, None)


def settled(slots: Slots, prepared: Authority, now: int, waited: float) -> bool:
    """Whether a prepared authority may sign: after propagation, or at once if the active one cannot sign that long."""
    active = slots.active
    published = prepared.published_at
    if active is None or not usable(active, now) or active.not_after <= published + PROPAGATION_SECONDS:
        return True
    return now >= published + PROPAGATION_SECONDS or waited >= PROPAGATION_SECONDS


def grace(slots: Slots, prepared: Authority, now: int, waited: float) -> float:
    """How many seconds those may still be waited for who do not know a prepared authority; 0 if the active one ends."""
    active = slots.active
    if active is None or not usable(active, now) or active.not_after <= now + LATE_SECONDS:
        return 0.0
    return max(0.0, LATE_SECONDS - max(waited, now - prepared.published_at))


def usable(authority: Authority, now: int) -> bool:
    """Whether what it signs now can be verified now: it is neither expired nor from a future the clock left again."""
    return authority.issued_at - _BACKDATE_SECONDS <= now < authority.not_after


def _prepare(slots: Slots, command: Prepare, now: int) -> tuple[Event, ...]:
    authority = command.authority
    replaced = slots[authority.slot]
    move(replaced.status if replaced is not None else None, "prepare")
    if authority.status is not Status.PREPARED:
        raise IllegalMove(f"a new authority begins as prepared, not as {authority.status.value}")
    if slots.find(authority.authority_id) is not None:
        raise IllegalMove("a new authority needs a key of its own: this one is in a slot already")
    if slots.prepared is not None:
        raise IllegalMove("another authority is prepared already; activate or retire it first")
    if not usable(authority, now):
        raise IllegalMove("a new authority must be valid now; check the clock")
    return (Prepared(authority, replaced, command.roots),)


def _activate(slots: Slots, command: Activate, now: int) -> tuple[Event, ...]:
    found = _known(slots, command.authority_id)
    active = slots.active
    if found is active:
        return ()
    chosen = _moved(found, "activate")
    if found.published_as not in command.bundle:
        raise IllegalMove("cannot activate an authority whose certificate or root is not in the stored bundle")
    if not usable(found, now):
        raise IllegalMove("cannot activate an authority that is not valid now; prepare a new one")
    if not command.acknowledged and not settled(slots, found, now, command.waited):
        raise IllegalMove(f"a new authority signs {PROPAGATION_SECONDS} s after it was published; try again shortly")
    if active is None:
        return (Activated(chosen),)
    return (Retired(_moved(active, "retire")), Activated(chosen))


def _known(slots: Slots, authority_id: str) -> Authority:
    found = slots.find(authority_id)
    if found is None:
        raise IllegalMove("no authority of this server has this id", authority_id=authority_id)
    return found


def _moved(authority: Authority, verb: Verb) -> Authority:
    status = move(authority.status, verb)
    assert status is not None, "only forgetting empties a slot"
    return replace(authority, status=status)
