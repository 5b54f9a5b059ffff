"""Values for tests: valid by default, spoiled by keyword."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.entry import RegistrationEntry
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from tests.authority import SpiffeTestCA

TD = TrustDomain("example.org")
OTHER_TD = TrustDomain("fed.test")


def sid(text: str) -> SpiffeId:
    """`/a` means the path in example.org; everything else is a whole SPIFFE ID."""
    return SpiffeId(TD, text) if text.startswith("/") else SpiffeId.parse(text)


def selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(Selector.parse(text) for text in texts)


def make_entry(**over: Any) -> RegistrationEntry:
    """An entry for /web below the agent /spire/agent/a, for uid 1000. IDs and selectors may be given as text."""
    values: dict[str, Any] = {
        "id": "entry-1",
        "spiffe_id": "/web",
        "parent_id": "/spire/agent/a",
        "selectors": frozenset({Selector("unix", "uid:1000")}),
        **over,
    }
    for name in ("spiffe_id", "parent_id"):
        if isinstance(values[name], str):
            values[name] = sid(values[name])
    given: Iterable[Selector | str] = values["selectors"]
    values["selectors"] = frozenset(Selector.parse(one) if isinstance(one, str) else one for one in given)
    return RegistrationEntry(**values)


@cache
def shared_ca(trust_domain: str = "example.org") -> SpiffeTestCA:
    """One CA per trust domain for tests that only need some certificate."""
    return SpiffeTestCA(trust_domain)


def make_bundle(**over: Any) -> TrustBundle:
    """A bundle of example.org with one CA, sequence 1, hint 300. `trust_domain` may be given as text."""
    values: dict[str, Any] = {"trust_domain": TD, "sequence": 1, "refresh_hint": 300, **over}
    if isinstance(values["trust_domain"], str):
        values["trust_domain"] = TrustDomain(values["trust_domain"])
    if "x509_authorities" not in values:
        values["x509_authorities"] = (X509Authority(shared_ca(values["trust_domain"].name).der),)
    return TrustBundle(**values)
