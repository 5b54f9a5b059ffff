"""Name constraints of CA certificates (RFC 5280 section 4.2.1.10), as far as SVIDs and nodes' certificates need them.

URI, DNS, IP and directory constraints are understood. A CA that constrains another form of name is refused whole: the
constraint would be there for a reason that we cannot check. Where a form is constrained, a name of that form that
cannot be compared (a URI without a host name, a DNS name that is none) is refused too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509

from spiffe_core.crypto.certificates import CertificateFacts

MAX_CONSTRAINTS = 128

_UNDERSTOOD = (x509.UniformResourceIdentifier, x509.DNSName, x509.IPAddress, x509.DirectoryName)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE | re.ASCII)
_MAX_HOST = 255


class _Incomparable(Exception):
    """The name has the constrained form, but not the part that the constraint is about."""


def violation(constraints: x509.NameConstraints, below: CertificateFacts) -> str:
    """Why the names of `below` break the constraints of a CA above it, or "" if they do not."""
    permitted = list(constraints.permitted_subtrees or ())
    excluded = list(constraints.excluded_subtrees or ())
    if len(permitted) + len(excluded) > MAX_CONSTRAINTS:
        return f"more than {MAX_CONSTRAINTS} name constraints"
    for subtree in (*permitted, *excluded):
        if not isinstance(subtree, _UNDERSTOOD):
            return f"a name constraint of a form that is not understood ({type(subtree).__name__})"
    for what, kind, within in _FORMS:
        allowed = [subtree.value for subtree in permitted if isinstance(subtree, kind)]
        refused = [subtree.value for subtree in excluded if isinstance(subtree, kind)]
        if not allowed and not refused:
            continue
        try:
            for name in _names(below, kind):
                if any(within(name, subtree, excluding=True) for subtree in refused):
                    return f"excluded {what}"
                if allowed and not any(within(name, subtree, excluding=False) for subtree in allowed):
                    return f"{what} outside the permitted names"
        except _Incomparable:
            return f"{what} that cannot be compared"
    return ""


def _names(below: CertificateFacts, kind: type[x509.GeneralName]) -> Sequence[Any]:
    """The names of one form; the subject is a directory name, if it is not empty."""
    names = below.alternative_names
    found: list[Any] = [one.value for one in names if isinstance(one, kind)] if names is not None else []
    if kind is x509.DirectoryName and below.subject.rdns:
        found.append(below.subject)
    return found


def _uri_within(uri: str, subtree: str, *, excluding: bool) -> bool:  # noqa: ARG001  # one shape for all forms
    """The constraint is a host, or with a leading dot everything below it; an empty one is every host."""
    host, wanted = _host_of(uri), subtree.lower()
    return host.endswith(wanted) and host != wanted if wanted.startswith(".") else wanted in {"", host}


def _host_of(uri: str) -> str:
    """The host a URI constraint is about; neither absent nor an IP address."""
    authority = re.split(r"[/?#]", uri.partition("://")[2], maxsplit=1)[0]
    host = re.sub(r":[0-9]*$", "", authority.rpartition("@")[2]).lower()
    if not _is_host(host):
        raise _Incomparable
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    raise _Incomparable


def _dns_within(name: str, subtree: str, *, excluding: bool) -> bool:
    """The constraint covers itself and everything below; an excluded name may not hide behind a wildcard.

    A leading dot is no DNS name. It is read as the stricter of its meanings: only what is below is permitted, and the
    name itself is excluded too.
    """
    given, wanted = name.lower(), subtree.lower()
    if not _is_host(given.removeprefix("*.")):
        raise _Incomparable
    if wanted.startswith("."):
        if not excluding:
            return given.endswith(wanted)
        wanted = wanted[1:]
    if excluding and given.startswith("*.") and wanted.endswith(given[1:]):
        return True
    return not wanted or given == wanted or given.endswith(f".{wanted}")


def _is_host(text: str) -> bool:
    return len(text) <= _MAX_HOST and _HOST.fullmatch(text) is not None


def _ip_within(address: object, subtree: object, *, excluding: bool) -> bool:  # noqa: ARG001  # one shape for all forms
    return (
        isinstance(subtree, ipaddress.IPv4Network | ipaddress.IPv6Network)
        and isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
        and address in subtree
    )


def _directory_within(name: x509.Name, subtree: x509.Name, *, excluding: bool) -> bool:  # noqa: ARG001  # one shape for all forms
    """The constraint is a beginning of the name, by whole relative names (RFC 5280 section 7.1)."""
    wanted = _folded(subtree)
    return _folded(name)[: len(wanted)] == wanted


def _folded(name: x509.Name) -> list[frozenset[tuple[str, object]]]:
    """Letters of any case are equal, and so is any amount of white space."""
    return [
        frozenset(
            (
                part.oid.dotted_string,
                " ".join(part.value.split()).casefold() if isinstance(part.value, str) else part.value,
            )
            for part in rdn
        )
        for rdn in name.rdns
    ]


_FORMS: tuple[tuple[str, type[x509.GeneralName], Callable[..., bool]], ...] = (
    ("URI", x509.UniformResourceIdentifier, _uri_within),
    ("DNS name", x509.DNSName, _dns_within),
    ("IP address", x509.IPAddress, _ip_within),
    ("directory name", x509.DirectoryName, _directory_within),
)
