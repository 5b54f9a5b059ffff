"""Path validation against x509-limbo (S4); MUNIMENT_LIMBO names a `limbo.json` made by `limbo compile`.

The suite judges certificates of web servers. Here the path alone is judged (`verify_path`: RFC 5280 without SPIFFE's
rules for leaves, without names to match and without a purpose), so some of what it calls a failure is another layer's
business. Each such case stands below with the reason; any other difference fails, and so does a reason without a case.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from spiffe_core.clock import SystemClock
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.errors import InvalidCertificate, Reason, VerificationFailed
from spiffe_core.x509_svid import check_leaf_facts
from spiffe_core.x509_verify import _PURPOSES, _check_purpose, verify_path
from tests.interop.peers import lacking

NAMES = "no name is matched here: SPIFFE authenticates the one URI, by `check_leaf_facts`"
ISSUERS = "a rule for what issuers write; RFC 5280 section 6 does not ask about it when a path is validated"
WEB = "a rule of the CA/Browser Forum for web servers, not of RFC 5280"
ACCEPTED = {
    "crl::": "SVIDs are short-lived; revocation is leaving the bundle (X509-SVID section 5)",
    "pathlen::max-chain-depth-": "the bound on chains is MAX_CHAIN, not the caller's",
    "webpki::san::": NAMES,
    "webpki::cn::": NAMES,
    "rfc5280::san::underscore-dns": NAMES,
    "rfc5280::san::ip-in-dns": NAMES,
    "rfc5280::ca-as-leaf-wrong-san": NAMES,
    "rfc5280::nc::not-allowed-in-ee-": "section 6 reads the constraints of CAs (6.1.4 g); a leaf's bind nobody below it",
    "rfc5280::nc::permitted-dns-match-noncritical": ISSUERS + "; critical or not, it is enforced",
    "rfc5280::nc::invalid-dnsname-leading-period": "read strictly: permits only what is below, excludes the name itself too",
    "rfc5280::san::noncritical-with-empty-subject": ISSUERS + "; of an SVID it is noted",
    "rfc5280::aki::": ISSUERS,
    "rfc5280::ski::": ISSUERS,
    "rfc5280::pc::ica-noncritical-pc": ISSUERS + "; a critical policyConstraints refuses the chain",
    "rfc5280::serial::too-long": ISSUERS,
    "rfc5280::ca-empty-subject": ISSUERS + "; name chaining holds between empty names too",
    "rfc5280::root-non-critical-basic-constraints": ISSUERS + "; cA is demanded, critical or not",
    "webpki::aki::": WEB,
    "webpki::eku::": WEB,
    "webpki::forbidden-rsa-": WEB + ": RSA of 2,048 to 8,192 bits is believed, whether or not 8 divides the size",
}
LEAVES = {
    "rfc5280::leaf-ku-keycertsign": Reason.NOT_A_LEAF,
    "webpki::ee-basicconstraints-ca": Reason.NOT_A_LEAF,
    "webpki::ca-as-leaf": Reason.NOT_A_LEAF,
    "webpki::v1-cert": Reason.KEY_USAGE,
    "rfc5280::eku::ee-wrong-eku": Reason.EXTENDED_KEY_USAGE,
}
"""Rules for leaves: not those of any PKI, but those of SVIDs, which are refused for that reason (X509-SVID 4, 5.2)."""
UNREAD_FORM = "a constrained form of name that is not understood refuses the chain, as RFC 5280 section 4.2.1.10 allows"
REFUSED = {
    "rfc5280::nc::nc-permits-email-": UNREAD_FORM,
    "rfc5280::nc::nc-forbids-othername-noop": UNREAD_FORM + ", also where no such name follows",
    "rfc5280::validity::notafter-fractional": "the end is a whole second, and it is over when a fraction follows",
    "online::": "web servers' certificates of the day are not SPIFFE's business",
}
STALE = {"online::"}
"""Cases that are there only if the suite was made with access to the network."""


def cases() -> list[dict[str, Any]]:
    named = os.environ.get("MUNIMENT_LIMBO", "")
    if not named:
        lacking("limbo", "MUNIMENT_LIMBO names no limbo.json")
    found: list[dict[str, Any]] = json.loads(Path(named).read_text())["testcases"]
    return found


def der(pem: str) -> bytes:
    return base64.b64decode("".join(line for line in pem.splitlines() if not line.startswith("-----")))


def refusal(case: dict[str, Any]) -> str:
    """Why the chain is refused, "" if it is believed."""
    moment = case["validation_time"]
    now = datetime.fromisoformat(moment) if moment else SystemClock().now()
    try:
        leaf, *rest = (
            read_certificate(der(pem))
            for pem in (case["peer_certificate"], *case["untrusted_intermediates"], *case["trusted_certs"])
        )
        between = len(case["untrusted_intermediates"])
        verify_path(leaf, rest[:between], rest[between:], now=now)
    except (VerificationFailed, InvalidCertificate) as error:
        return error.public
    return ""


def explained(table: Iterable[str], case: dict[str, Any]) -> set[str]:
    return {prefix for prefix in table if case["id"].startswith(prefix)}


def as_svid(case: dict[str, Any]) -> set[Reason]:
    """Why a leaf would be refused as the SVID of a server, whatever path it has."""
    leaf, found = read_certificate(der(case["peer_certificate"])), set()
    for check in (check_leaf_facts, lambda facts: _check_purpose(facts, _PURPOSES["server"])):
        try:
            check(leaf)
        except VerificationFailed as error:
            found.add(error.reason)
    return found


def test_every_chain_is_judged_as_the_suite_says_or_as_explained() -> None:
    """S4: nothing is believed that is not to be; nothing is refused without a reason; nothing crashes the reader."""
    wrong: list[tuple[str, str]] = []
    used: set[str] = set()
    judged = 0
    for case in cases():
        why = refusal(case)
        judged += 1
        if (case["expected_result"] == "SUCCESS") is not bool(why):
            continue
        reasons = explained(REFUSED if why else (*ACCEPTED, *LEAVES), case)
        used |= reasons
        if not reasons:
            wrong.append((case["id"], why or "believed"))
        wrong += [
            (case["id"], "good as an SVID") for one in reasons & LEAVES.keys() if LEAVES[one] not in as_svid(case)
        ]
    assert wrong == []
    assert {*ACCEPTED, *LEAVES, *REFUSED} - used <= STALE, "a reason that explains nothing"
    assert judged >= 190
