"""Filters that listing and counting share: IDs, selectors, trust domains and how sets are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.terminal.flags import F, flag
from spiffe_core.wire._gen.spire.api.types import federateswith_pb2, selector_pb2, spiffeid_pb2

MATCHES: Final = ("superset", "exact", "any", "subset")


def selector_flag(function: F) -> F:
    """The repeatable flag for selectors."""
    return flag("--selector", multiple=True, metavar="TYPE:VALUE", help="A selector. May be repeated.")(function)


def match_flag(name: str, spire: str, what: str) -> Callable[[Any], Any]:
    """The flag that says how two sets are compared."""
    return flag(
        name,
        spire,
        type=click.Choice(MATCHES),
        default="superset",
        show_default=True,
        help=f"How {what} are compared with those given.",
    )


def spiffe_id(text: str, field: str) -> spiffeid_pb2.SPIFFEID:
    """A SPIFFE ID typed by a person."""
    parsed = SpiffeId.parse(text, field=field)
    return spiffeid_pb2.SPIFFEID(trust_domain=parsed.trust_domain.name, path=parsed.path)


def selectors(texts: Sequence[str]) -> list[selector_pb2.Selector]:
    """Selectors typed by a person, in the order given."""
    parsed = [Selector.parse(text) for text in texts]
    return [selector_pb2.Selector(type=selector.type, value=selector.value) for selector in parsed]


def trust_domains(texts: Sequence[str], field: str) -> list[str]:
    """Trust domains typed by a person, as bare names."""
    return [TrustDomain.parse(text, field=field).name for text in texts]


def selector_match(texts: Sequence[str], how: str) -> selector_pb2.SelectorMatch | None:
    """A filter on selectors; None when there are none to filter by."""
    if not texts:
        return None
    return selector_pb2.SelectorMatch(selectors=selectors(texts), match=f"MATCH_{how.upper()}")


def federates_with_match(texts: Sequence[str], how: str) -> federateswith_pb2.FederatesWithMatch | None:
    """A filter on trust domains; None when there are none to filter by."""
    if not texts:
        return None
    return federateswith_pb2.FederatesWithMatch(
        trust_domains=trust_domains(texts, "--federates-with"), match=f"MATCH_{how.upper()}"
    )
