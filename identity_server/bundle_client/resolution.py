"""From a host name to the addresses that are connected to: looked up once, every one of them checked (reliability S60).

The connection goes to the very addresses that were checked, so a name that means something else a moment later gains
nothing (DNS rebinding). A name of which one address is refused is refused whole.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeAlias

from identity_server.domain.reachability import AddressPolicy
from spiffe_core.errors import Unavailable

MAX_ADDRESSES = 8

Resolve: TypeAlias = Callable[[str, int], list[str]]


def system_addresses(host: str, port: int) -> list[str]:
    """What the system's resolver knows. May block.

    Raises:
        OSError, UnicodeError: the name cannot be resolved.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def checked_addresses(host: str, port: int, policy: AddressPolicy, resolve: Resolve) -> tuple[str, ...]:
    """The addresses of `host`, all of which may be connected to.

    Raises:
        Unavailable: it has none, or one that is refused; names the address and the setting that would allow it.
    """
    try:
        addresses = resolve(host, port)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unavailable(f"{host}: the name cannot be resolved ({reason or 'it is no host name'})") from None
    if not addresses:
        raise Unavailable(f"{host}: the name has no address")
    for address in addresses:
        refusal = policy.refusal(address)
        if refusal:
            raise Unavailable(
                f"{host}: {address} {refusal}, and bundles are fetched from public addresses only; list its network in "
                "federation.bundle_client.allowed_networks if it is meant"
            )
    return tuple(addresses[:MAX_ADDRESSES])
