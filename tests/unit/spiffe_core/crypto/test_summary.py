"""A certificate as people are shown it (spire_wire section 5.7, Debug.GetInfo)."""

from datetime import timedelta

from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.crypto.summary import summary_of
from tests.authority import certify
from tests.doubles.clock import START


def test_the_serial_number_in_an_authoritys_subject_has_a_name():
    """RFC 4514 has none for it and shows 2.5.4.5=...; SPIRE's `debug getinfo` shows SERIALNUMBER=..."""
    key = generate(KeyKind.EC_P256)
    subject = (("C", "US"), ("O", "SPIFFE"), ("serialNumber", "123"))
    uris = ("spiffe://example.org",)
    der = certify(key, signer=key, issuer=None, now=START, subject=subject, uris=uris, ca=True, ttl=timedelta(hours=1))
    shown = summary_of(der)
    assert shown.subject == "SERIALNUMBER=123,O=SPIFFE,C=US"
    assert str(shown.spiffe_id) == "spiffe://example.org"
    assert shown.expires_at == int(START.timestamp()) + 3600
