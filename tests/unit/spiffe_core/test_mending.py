"""Commands that mend an entry change what they say and nothing else (need 30)."""

import shlex
from dataclasses import fields, replace

import pytest

from spiffe_core.entry import RegistrationEntry
from spiffe_core.mending import update_command
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import TrustDomain
from tests.builders import make_entry

VALUES = {
    "x509_svid_ttl": 20,
    "jwt_svid_ttl": 30,
    "expires_at": 1_900_000_000,
    "federates_with": (TrustDomain("fed.test"), TrustDomain("other.test")),
    "dns_names": ("a.example.org", "b.example.org"),
    "hint": "the second one's",
    "admin": True,
    "downstream": True,
    "store_svid": True,
    "disable_x509_svid_prefetch": True,
    "jwt_svid_include_jti": True,
}
"""One for each field that has a default, other than that."""

FLAGS = {
    "x509_svid_ttl": "-x509SVIDTTL 20",
    "jwt_svid_ttl": "-jwtSVIDTTL 30",
    "expires_at": "-entryExpiry 1900000000",
    "federates_with": "-federatesWith fed.test -federatesWith other.test",
    "dns_names": "-dns a.example.org -dns b.example.org",
    "hint": "-hint 'the second one'\"'\"'s'",
    "admin": "-admin",
    "downstream": "-downstream",
    "store_svid": "-storeSVID",
    "disable_x509_svid_prefetch": "-disableX509SVIDPrefetch",
    "jwt_svid_include_jti": "-jwtSVIDIncludeJTI",
}
ALWAYS = {"id", "spiffe_id", "parent_id", "selectors"}
OF_THE_SERVER = {"revision_number", "created_at"}


def test_an_entry_at_its_defaults_is_named_by_its_ids_and_selectors():
    entry = make_entry()
    command = shlex.split(update_command(entry))
    assert command[:3] == ["identity-server", "entry", "update"]
    assert {word for word in command if word.startswith("-")} == {"-entryID", "-parentID", "-spiffeID", "-selector"}


def test_every_field_of_an_entry_has_its_flag_here():
    """A field that is added to entries and forgotten in the command would be reset by whoever pastes it."""
    named = {one.name for one in fields(RegistrationEntry) if one.init}
    assert named == {*FLAGS, *ALWAYS, *OF_THE_SERVER}


@pytest.mark.parametrize("name", FLAGS)
def test_what_is_not_at_its_default_is_in_the_command(name):
    """`entry update` replaces an entry whole: what is not given is reset."""
    assert update_command(replace(make_entry(), **{name: VALUES[name]})).endswith(f" {FLAGS[name]}")


def test_the_parent_and_the_selectors_may_differ():
    command = update_command(make_entry(), parent="spiffe://example.org/other", selectors=[Selector("unix", "uid:7")])
    assert " -parentID spiffe://example.org/other " in command
    assert command.partition(" -selector ")[2] == "unix:uid:7"
