"""Name constraints (N-X-25, X509-17, RFC 5280 section 4.2.1.10)."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509

from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.crypto.name_constraints import MAX_CONSTRAINTS, violation
from tests.authority import SpiffeTestCA

CA = SpiffeTestCA()


def uri(value):
    return x509.UniformResourceIdentifier(value)


def dns(value):
    return x509.DNSName(value)


def ip(value):
    return x509.IPAddress(ipaddress.ip_network(value))


def constraints(permitted=(), excluded=()):
    return x509.NameConstraints(list(permitted) or None, list(excluded) or None)


CASES = {
    "permitted URI": (constraints([uri("example.org")]), {}, ""),
    "permitted in upper case": (constraints([uri("EXAMPLE.org")]), {}, ""),
    "URI outside": (constraints([uri("other.org")]), {}, "URI outside the permitted names"),
    "one of two permitted": (constraints([uri("other.org"), uri("example.org")]), {}, ""),
    "excluded URI": (constraints(excluded=[uri("example.org")]), {}, "excluded URI"),
    "another URI excluded": (constraints(excluded=[uri("other.org")]), {}, ""),
    "excluded wins": (constraints([uri("example.org")], [uri("example.org")]), {}, "excluded URI"),
    "a suffix is no host": (constraints([uri("ample.org")]), {}, "URI outside the permitted names"),
    "leading dot: below": (constraints([uri(".org")]), {}, ""),
    "leading dot: not itself": (constraints([uri(".example.org")]), {}, "URI outside the permitted names"),
    "an empty constraint is every host": (constraints(excluded=[uri("")]), {}, "excluded URI"),
    "DNS itself": (constraints([dns("a.org")]), {"dns": ("a.org",)}, ""),
    "DNS below": (constraints([dns("a.org")]), {"dns": ("web.A.org",)}, ""),
    "DNS outside": (constraints([dns("a.org")]), {"dns": ("xa.org",)}, "DNS name outside the permitted names"),
    "DNS leading dot": (
        constraints([dns(".a.org")]),
        {"dns": ("a.org",)},
        "DNS name outside the permitted names",
    ),
    "DNS excluded": (constraints(excluded=[dns("a.org")]), {"dns": ("w.a.org",)}, "excluded DNS name"),
    "DNS excluded behind a wildcard": (
        constraints(excluded=[dns("w.a.org")]),
        {"dns": ("*.a.org",)},
        "excluded DNS name",
    ),
    "a wildcard is permitted as a name": (constraints([dns("a.org")]), {"dns": ("*.a.org",)}, ""),
    "an empty DNS constraint": (constraints([dns("")]), {"dns": ("w.a.org",)}, ""),
    "no name of the constrained form": (constraints([dns("a.org")]), {}, ""),
    "IP inside": (
        constraints([ip("10.0.0.0/8")]),
        {"other_names": [x509.IPAddress(ipaddress.ip_address("10.1.2.3"))]},
        "",
    ),
    "IP outside": (
        constraints([ip("10.0.0.0/8")]),
        {"other_names": [x509.IPAddress(ipaddress.ip_address("11.1.2.3"))]},
        "IP address outside the permitted names",
    ),
    "IPv6 is not inside IPv4": (
        constraints([ip("0.0.0.0/0")]),
        {"other_names": [x509.IPAddress(ipaddress.ip_address("::1"))]},
        "IP address outside the permitted names",
    ),
    "IP excluded": (
        constraints(excluded=[ip("0.0.0.0/0")]),
        {"other_names": [x509.IPAddress(ipaddress.ip_address("11.1.2.3"))]},
        "excluded IP address",
    ),
    "a form that is not understood": (
        constraints([x509.RFC822Name("a.org")]),
        {},
        "a name constraint of a form that is not understood (RFC822Name)",
    ),
    "too many": (
        constraints([uri(f"d{n}.org") for n in range(MAX_CONSTRAINTS + 1)]),
        {},
        "more than 128 name constraints",
    ),
    "no names at all": (constraints([uri("other.org")]), {"uris": ()}, ""),
}


@pytest.mark.parametrize(("limits", "spoil", "expected"), CASES.values(), ids=CASES)
def test_constraints(limits, spoil, expected):
    """N-X-25."""
    leaf = read_certificate(CA.issue(**spoil).chain[0])
    assert violation(limits, leaf) == expected
