"""Name constraints (N-X-25, X509-17, RFC 5280 section 4.2.1.10)."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

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


def directory(*parts):
    return x509.DirectoryName(x509.Name([x509.NameAttribute(OIDS[short], value) for short, value in parts]))


OIDS = {"O": NameOID.ORGANIZATION_NAME, "CN": NameOID.COMMON_NAME}
ACME = (("O", "Acme"), ("CN", "node"))
LTD = (("O", "ACME Ltd"), ("CN", "node"))


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
    "a URI with a user and a port": (
        constraints(excluded=[uri("evil.org")]),
        {"uris": ("https://example.org@evil.org:8443/x",)},
        "excluded URI",
    ),
    "a URI whose path looks like a host": (
        constraints([uri("example.org")]),
        {"uris": ("https://evil.org?://example.org/",)},
        "URI outside the permitted names",
    ),
    "a URI without an authority": (
        constraints(excluded=[uri("evil.org")]),
        {"uris": ("urn:uuid:1",)},
        "URI that cannot be compared",
    ),
    "a URI with an IPv4 address": (
        constraints(excluded=[uri("evil.org")]),
        {"uris": ("https://192.0.2.1/",)},
        "URI that cannot be compared",
    ),
    "a URI with an IPv6 address": (
        constraints([uri("example.org")]),
        {"uris": ("https://[2001:db8::1]:443/",)},
        "URI that cannot be compared",
    ),
    "a URI with an empty label": (
        constraints([uri(".example.org")]),
        {"uris": ("spiffe://.example.org/x",)},
        "URI that cannot be compared",
    ),
    "without a URI constraint any URI passes": (constraints([dns("a.org")]), {"uris": ("urn:uuid:1",)}, ""),
    "DNS with an empty label": (
        constraints([dns("a.org")]),
        {"dns": (".a.org",)},
        "DNS name that cannot be compared",
    ),
    "DNS with a trailing dot": (
        constraints(excluded=[dns("a.org")]),
        {"dns": ("a.org.",)},
        "DNS name that cannot be compared",
    ),
    "DNS with a wildcard in the middle": (
        constraints(excluded=[dns("b.a.org")]),
        {"dns": ("w.*.a.org",)},
        "DNS name that cannot be compared",
    ),
    "DNS with an underscore": (constraints([dns("a.org")]), {"dns": ("_x.a.org",)}, ""),
    "DNS leading dot excludes the name itself": (
        constraints(excluded=[dns(".a.org")]),
        {"dns": ("a.org",)},
        "excluded DNS name",
    ),
    "DNS leading dot excludes a wildcard": (
        constraints(excluded=[dns(".w.a.org")]),
        {"dns": ("*.a.org",)},
        "excluded DNS name",
    ),
    "directory name of the subject": (constraints([directory(("O", "Acme"))]), {"subject": ACME}, ""),
    "directory name in another case": (constraints([directory(("O", " acme  ltd "))]), {"subject": LTD}, ""),
    "directory name outside": (
        constraints([directory(("O", "Acme"))]),
        {"subject": (("O", "Other"), ("O", "Acme"))},
        "directory name outside the permitted names",
    ),
    "directory name longer than the subject": (
        constraints([directory(*ACME, ("CN", "x"))]),
        {"subject": ACME},
        "directory name outside the permitted names",
    ),
    "directory name excluded": (
        constraints(excluded=[directory(("O", "ACME"))]),
        {"subject": ACME},
        "excluded directory name",
    ),
    "directory name among the alternative names": (
        constraints(excluded=[directory(("O", "Acme"))]),
        {"subject": (), "other_names": [directory(*ACME)]},
        "excluded directory name",
    ),
    "an empty subject is no directory name": (constraints([directory(("O", "Acme"))]), {"subject": ()}, ""),
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
