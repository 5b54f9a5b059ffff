"""DNS names that may stand beside a SPIFFE ID in an X509-SVID."""

from __future__ import annotations

from collections.abc import Iterable

import idna

from spiffe_core.errors import InvalidRequest
from spiffe_core.spiffe_id import shown

MAX_DNS_NAME_BYTES = 253


def check_dns_name(name: str, *, field: str = "dns_names") -> str:
    """Return `name` if it is an ASCII host name by strict IDNA rules; one leading `*.` is allowed.

    Raises:
        InvalidRequest: with `field`, naming the rule.
    """
    if not name:
        raise InvalidRequest(f"{field}: a DNS name is empty", field=field)
    if len(name) > MAX_DNS_NAME_BYTES:
        raise InvalidRequest(f"{field}: a DNS name has at most {MAX_DNS_NAME_BYTES} bytes", field=field)
    if not name.isascii():
        raise InvalidRequest(f"{field}: write {shown(name)} in its ASCII form (xn--...)", field=field)
    base = name.removeprefix("*.")
    if "*" in base:
        raise InvalidRequest(f"{field}: a wildcard is allowed only as a leading '*.', got {shown(name)}", field=field)
    if base.endswith("."):
        raise InvalidRequest(f"{field}: a DNS name must not end with a dot, got {shown(name)}", field=field)
    try:
        idna.encode(base, strict=True)
    except idna.IDNAError as error:
        raise InvalidRequest(f"{field}: {shown(name)} is not a DNS name: {shown(str(error))}", field=field) from None
    return name


def overlapping_wildcard(names: Iterable[str]) -> tuple[str, str] | None:
    """The first wildcard and the name it already covers, or None."""
    given = tuple(names)
    lower = {name.lower(): name for name in given}
    for name in given:
        label, dot, base = name.lower().partition(".")
        wildcard = lower.get(f"*.{base}") if dot and label != "*" else None
        if wildcard is not None:
            return wildcard, name
    return None
