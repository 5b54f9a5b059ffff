"""DNS names beside a SPIFFE ID."""

from __future__ import annotations

import pytest

from spiffe_core.dns_name import check_dns_name, overlapping_wildcard
from spiffe_core.errors import InvalidRequest


@pytest.mark.parametrize(
    "name",
    ["localhost", "web.example.org", "*.example.org", "xn--mnchen-3ya.de", "a-1.b", "1.2.3.4", "Web.example.org"],
)
def test_host_names_are_accepted(name):
    assert check_dns_name(name) == name


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "is empty"),
        ("a" * 64 + ".org", "is not a DNS name"),
        (".".join(["a" * 60] * 5), "at most 253 bytes"),
        ("münchen.de", "ASCII form"),
        ("a.*.org", "only as a leading"),
        ("*.*.org", "only as a leading"),
        ("*", "only as a leading"),
        ("*.", "is not a DNS name"),
        ("web*.org", "only as a leading"),
        ("web.", "must not end with a dot"),
        ("a..b", "is not a DNS name"),
        (".a", "is not a DNS name"),
        ("-a.org", "is not a DNS name"),
        ("a_b.org", "is not a DNS name"),
        ("a b.org", "is not a DNS name"),
        ("a\n", "is not a DNS name"),
        ("xn--a.org", "is not a DNS name"),
    ],
)
def test_what_is_no_host_name_is_refused(name, rule):
    """N-C-12: each name is checked by strict IDNA rules, and the refusal names the field."""
    with pytest.raises(InvalidRequest) as refusal:
        check_dns_name(name, field="csr.dns_names")
    assert rule in refusal.value.public
    assert refusal.value.field == "csr.dns_names"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["*.example.org", "web.example.org"], ("*.example.org", "web.example.org")),
        (["WEB.example.org", "*.Example.org"], ("*.Example.org", "WEB.example.org")),
        (["*.example.org", "example.org", "a.web.example.org", "localhost"], None),
        (["*.example.org"], None),
        ([], None),
    ],
)
def test_a_wildcard_that_covers_another_name_is_found(names, found):
    """N-C-12."""
    assert overlapping_wildcard(names) == found
