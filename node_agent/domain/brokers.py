"""Who may ask for other workloads' identities, and by which kind of reference (SPIFFE Broker API section 4.1).

Whoever is not listed may ask for nothing; a kind of reference that is not listed for a broker, nothing by it. Over TCP
a kind needs a permission of its own, and a process number is understood from this machine alone (section 3.1.2): it
means another process anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spiffe_core.errors import Forbidden, InvalidRequest
from spiffe_core.spiffe_id import SpiffeId

PREFIX = "type.googleapis.com/"
PROCESS = f"{PREFIX}spiffe.broker.WorkloadPIDReference"
KUBERNETES = f"{PREFIX}spiffe.broker.KubernetesObjectReference"
ANY = "*"
KNOWN = frozenset({PROCESS, KUBERNETES})


@dataclass(frozen=True, slots=True)
class Permission:
    """One kind of reference, by the type URL of its message, or "*" for every one that is understood here."""

    type_url: str
    allow_over_tcp: bool = False


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker by its SPIFFE ID, of this trust domain or of one that is federated with, and what it may do."""

    spiffe_id: SpiffeId
    permissions: tuple[Permission, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call came from: over a Unix socket (`local`), or over TCP, from this very machine or from another."""

    local: bool
    same_machine: bool


class Brokers:
    """The brokers of one agent."""

    def __init__(self, brokers: Iterable[Broker]) -> None:
        self._permissions = {
            one.spiffe_id: {permission.type_url: permission for permission in one.permissions} for one in brokers
        }

    def __contains__(self, spiffe_id: SpiffeId | None) -> bool:
        return spiffe_id in self._permissions

    def check(self, spiffe_id: SpiffeId | None, type_url: str, origin: Origin) -> None:
        """Whether this broker may use this kind of reference from there.

        Raises:
            Forbidden: it is no broker, or may not.
            InvalidRequest: the reference is missing or of a kind that is not understood here.
        """
        permissions = self._permissions.get(spiffe_id) if spiffe_id is not None else None
        if permissions is None:
            raise Forbidden("caller not configured as an authorized broker", spiffe_id=str(spiffe_id))
        if not type_url:
            raise InvalidRequest("workload reference must be provided", field="reference")
        if type_url not in KNOWN:
            raise InvalidRequest("reference: workloads cannot be named in this way here", field="reference")
        permission = permissions.get(type_url) or permissions.get(ANY)
        if permission is None:
            raise Forbidden(f"this broker is not allowed to use {type_url}", spiffe_id=str(spiffe_id))
        if origin.local:
            return
        if not permission.allow_over_tcp:
            raise Forbidden(f"{type_url} is not allowed over TCP for this broker", spiffe_id=str(spiffe_id))
        if type_url == PROCESS and not origin.same_machine:
            raise Forbidden("a process can only be named from its own machine", spiffe_id=str(spiffe_id))
