"""Name constraints of CA certificates (RFC 5280 section 4.2.1.10), as far as SVIDs need them.

URI, DNS and IP constraints are understood. A CA that constrains another form of name is refused whole: the constraint
would be there for a reason that we cannot check.
"""

from __future__ import annotations

import ipaddress

from cryptography import x509

from spiffe_core.crypto.certificates import CertificateFacts

MAX_CONSTRAINTS = 128

_UNDERSTOOD = (x509.UniformResourceIdentifier, x509.DNSName, x509.IPAddress)


def violation(constraints: x509.NameConstraints, below: CertificateFacts) -> str:
    """Why the names of `below` break the constraints of a CA above it, or "" if they do not."""
    permitted = list(constraints.permitted_subtrees or ())
    excluded = list(constraints.excluded_subtrees or ())
    if len(permitted) + len(excluded) > MAX_CONSTRAINTS:
        return f"more than {MAX_CONSTRAINTS} name constraints"
    for subtree in (*permitted, *excluded):
        if not isinstance(subtree, _UNDERSTOOD):
            return f"a name constraint of a form that is not understood ({type(subtree).__name__})"
    names = below.alternative_names
    if names is None:
        return ""
    for what, kind, within in (
        ("URI", x509.UniformResourceIdentifier, _uri_within),
        ("DNS name", x509.DNSName, _dns_within),
        ("IP address", x509.IPAddress, _ip_within),
    ):
        allowed = [subtree.value for subtree in permitted if isinstance(subtree, kind)]
        refused = [subtree.value for subtree in excluded if isinstance(subtree, kind)]
        for name in names.get_values_for_type(kind):
            if any(within(name, subtree, excluding=True) for subtree in refused):
                return f"excluded {what}"
            if allowed and not any(within(name, subtree, excluding=False) for subtree in allowed):
                return f"{what} outside the permitted names"
    return ""


def _uri_within(uri: object, subtree: object, *, excluding: bool) -> bool:  # noqa: ARG001  # one shape for all three
    """The constraint is a host, or with a leading dot everything below it; an empty one is every host."""
    host = str(uri).partition("://")[2].partition("/")[0].lower()
    wanted = str(subtree).lower()
    return host.endswith(wanted) and host != wanted if wanted.startswith(".") else wanted in {"", host}


def _dns_within(name: object, subtree: object, *, excluding: bool) -> bool:
    """The constraint covers itself and everything below; an excluded name may not hide behind a wildcard."""
    given, wanted = str(name).lower(), str(subtree).lower()
    if wanted.startswith("."):
        return given.endswith(wanted)
    if excluding and given.startswith("*.") and wanted.endswith(given[1:]):
        return True
    return not wanted or given == wanted or given.endswith(f".{wanted}")


def _ip_within(address: object, subtree: object, *, excluding: bool) -> bool:  # noqa: ARG001  # one shape for all three
    return (
        isinstance(subtree, ipaddress.IPv4Network | ipaddress.IPv6Network)
        and isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
        and address in subtree
    )
