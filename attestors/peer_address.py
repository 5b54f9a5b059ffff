"""Whether a certificate names the network address its presenter connected from (x509pop's `verify_client_ip`)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509

from spiffe_core.crypto.certificates import CertificateFacts
from spiffe_core.errors import Forbidden, Internal


def require_named(leaf: CertificateFacts, address: str) -> None:
    """Let pass only a peer whose address is an IP SAN of `leaf`. An IPv4 address is the same inside IPv6 (RFC 4291).

    Raises:
        Forbidden: it is none of them.
        Internal: it is not known where the peer connected from, as on the admin socket.
    """
    try:
        peer = _plain(ip_address(address))
    except ValueError:
        raise Internal("client IP not available for verification", address=address) from None
    names = leaf.alternative_names
    listed = names.get_values_for_type(x509.IPAddress) if names is not None else []
    if not any(isinstance(one, IPv4Address | IPv6Address) and _plain(one) == peer for one in listed):
        raise Forbidden(
            f"client IP {peer} does not match any certificate IP SAN; verify_client_ip is on: give the node a "
            "certificate with that address, or look for a proxy or NAT in between"
        )


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
