"""Whom a network address stands for, where a bound is each customer's: pure."""

from __future__ import annotations

import ipaddress
from typing import Final

_IPV6_NETWORK_BITS: Final = 64


def network_of(address: str) -> str:
    """The key of a network address: an IPv4 address, or the /64 of an IPv6 address, which is one customer's."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _IPV6_NETWORK_BITS), strict=False))
