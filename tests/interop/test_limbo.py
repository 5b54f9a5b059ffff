"""Path validation against x509-limbo (S4); MUNIMENT_LIMBO names a `limbo.json` made by `limbo compile`.

The suite judges certificates of web servers. Here the path alone is judged (`verify_path`: RFC 5280 without SPIFFE's
rules for leaves, without names to match and without a purpose), so some of what it calls a failure is another layer's
business. Each such case stands below with the reason; any other difference fails.
"""

from __future__ import annotations

import base64
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from spiffe_core.clock import SystemClock
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.errors import InvalidCertificate, VerificationFailed
from spiffe_core.x509_verify import verify_path
from tests.interop.peers import lacking

NAMES = "no name is matched here: SPIFFE authenticates the one URI, by `check_leaf_facts`"
LEAF_FORM = "a rule for leaves or a purpose: `check_leaf_facts` and `_check_purpose` ask that of SVIDs, not of any PKI"
FORM = "a rule for what issuers must write; nothing is proved by its absence, and Go and OpenSSL accept it"
ACCEPTED = {
    "crl::": "SVIDs are short-lived; revocation is leaving the bundle (X509-SVID section 5)",
    "pathlen::max-chain-depth-": "the bound on chains is MAX_CHAIN, not the caller's",
    "webpki::san::": NAMES,
    "webpki::cn::": NAMES,
    "rfc5280::san::underscore-dns": NAMES,
    "rfc5280::san::ip-in-dns": NAMES,
    "rfc5280::nc::nc-permits-invalid-dns-san": NAMES,
    "rfc5280::ca-as-leaf-wrong-san": NAMES,
    "rfc5280::eku::ee-wrong-eku": LEAF_FORM,
    "rfc5280::leaf-ku-keycertsign": LEAF_FORM,
    "rfc5280::nc::not-allowed-in-ee-": LEAF_FORM,
    "rfc5280::san::noncritical-with-empty-subject": LEAF_FORM,
    "webpki::eku::": LEAF_FORM,
    "webpki::v1-cert": LEAF_FORM,
    "webpki::ee-basicconstraints-ca": LEAF_FORM,
    "webpki::ca-as-leaf": LEAF_FORM,
    "rfc5280::aki::": FORM,
    "rfc5280::ski::": FORM,
    "webpki::aki::": FORM,
    "rfc5280::nc::permitted-dns-match-noncritical": FORM,
    "rfc5280::nc::invalid-dnsname-leading-period": FORM,
    "rfc5280::pc::ica-noncritical-pc": FORM,
    "rfc5280::serial::too-long": FORM,
    "rfc5280::ca-empty-subject": FORM,
    "rfc5280::root-non-critical-basic-constraints": FORM,
    "webpki::forbidden-rsa-": "RSA of 2,048 to 8,192 bits is believed, whether or not 8 divides the size",
}
REFUSED = {
    "rfc5280::nc::permitted-dn-match": "name constraints on anything but URI, DNS and IP refuse the chain",
    "rfc5280::nc::nc-permits-email-": "name constraints on anything but URI, DNS and IP refuse the chain",
    "rfc5280::nc::nc-forbids-othername-noop": "name constraints on anything but URI, DNS and IP refuse the chain",
    "rfc5280::validity::notafter-fractional": "the end is a whole second, and it is over when a fraction follows",
    "online::": "web servers' certificates of the day are not SPIFFE's business",
}


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


def explained(table: dict[str, str], case: dict[str, Any]) -> bool:
    return any(case["id"].startswith(prefix) for prefix in table)


def test_every_chain_is_judged_as_the_suite_says_or_as_explained() -> None:
    """S4: nothing is believed that is not to be; nothing is refused without a reason; nothing crashes the reader."""
    wrong, judged = [], 0
    for case in cases():
        why = refusal(case)
        if case["expected_result"] == "SUCCESS":
            if why and not explained(REFUSED, case):
                wrong.append((case["id"], why))
        elif not why and not explained(ACCEPTED, case):
            wrong.append((case["id"], "believed"))
        judged += 1
    assert wrong == []
    assert judged >= 190
