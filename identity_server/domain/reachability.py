"""Which addresses a bundle may be fetched from (reliability S60).

Whoever may name a URL makes this server connect to it, from inside the network it stands in. Only addresses that
anybody on the Internet could reach are therefore connected to, unless the operator lists a network. An IPv6 address
that carries an IPv4 address (mapped, compatible, 6to4, NAT64, Teredo) is judged by both.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_NETWORKS = 64

METADATA = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "169.254.170.2", "100.100.100.200", "168.63.129.16"))
)
"""Where clouds hand credentials to whoever asks from inside: never connected to, whatever is listed."""

_SITE_LOCAL = ipaddress.ip_network("fec0::/10")
_COMPATIBLE = ipaddress.ip_network("::/96")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
_LOW_BITS = 0xFFFF_FFFF
_FIRST_OF_COMPATIBLE = 2
"""Below it lie `::` and `::1`, which are addresses of their own."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """The networks that are connected to although nobody outside could reach them."""

    allowed: tuple[Network, ...] = ()

    def refusal(self, text: str) -> str:
        """Why this address is not connected to, "" if it is."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return "is not an IP address"
        for one in _meanings(address):
            kind = _kind(one)
            if kind and not self._listed(one):
                return kind
        return ""

    def _listed(self, address: Address) -> bool:
        """Link-local addresses only by a network that is link-local itself: "everything" is not meant to hold them."""
        if address in METADATA or address.is_multicast or address.is_unspecified:
            return False
        return any(
            address in network and (network.is_link_local or not address.is_link_local) for network in self.allowed
        )


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation; a lone address is a network of one.

    Raises:
        ValueError: one is no network, with the rule.
    """
    if len(texts) > MAX_NETWORKS:
        raise ValueError(f"at most {MAX_NETWORKS} networks are allowed")
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError:
            raise ValueError(f'{text!r} is not a network; write it as "10.1.0.0/16" or "fd00:1::/64"') from None
    return tuple(networks)


def _meanings(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 addresses that connecting to it may really mean."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    if address in _NAT64:  # how a network without IPv4 reaches IPv4
        yield ipaddress.IPv4Address(int(address) & _LOW_BITS)
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    compatible = address in _COMPATIBLE and int(address) >= _FIRST_OF_COMPATIBLE
    if compatible or address in _LOCAL_NAT64:
        yield ipaddress.IPv4Address(int(address) & _LOW_BITS)


def _kind(address: Address) -> str:
    """What is wrong with an address, "" for one that is anybody's."""
    if address in METADATA:
        return "is a cloud's metadata service"
    for words, applies in (
        ("is unspecified", address.is_unspecified),
        ("is a loopback address", address.is_loopback),
        ("is a link-local address", address.is_link_local),
        ("is a multicast address", address.is_multicast),
        ("is a private address", address.is_private or address in _SITE_LOCAL),
        ("is not a public address", address.is_reserved or not address.is_global),
    ):
        if applies:
            return words
    return ""
