"""R39: the settings that servers of one database must share: canonical, compared key by key, the shortest life wins."""

import json

import pytest

from identity_server.domain.server_settings import (
    PRESENT_SECONDS,
    DefaultTtls,
    IssuingSettings,
    ServerRecord,
    default_ttls,
    differences,
    present,
)
from identity_server.settings import from_mapping

NOW = 1_700_000_000
BASE = {
    "trust_domain": "example.org",
    "svid.default_x509_ttl": 3600,
    "svid.agent_ttl": 3600,
    "jwt.default_ttl": 300,
    "jwt.disabled": False,
    "wit.default_ttl": None,
}


def settings(**over):
    return IssuingSettings.of({**BASE, **over})


def record(server_id, written_at=NOW, **over):
    return ServerRecord(server_id, settings(**over), written_at)


def test_equal_settings_are_equal_bytes_in_whatever_order_they_were_given():
    """R39: the fingerprint is of the content."""
    turned = IssuingSettings.of(dict(reversed(BASE.items())))
    assert turned.document == settings().document
    assert turned.fingerprint == settings().fingerprint
    assert settings().document == json.dumps(BASE, sort_keys=True, separators=(",", ":")).encode()
    assert IssuingSettings.parse(settings().document) == settings()


@pytest.mark.parametrize("key", sorted(BASE))
def test_every_key_changes_the_fingerprint_and_is_named(key):
    """R39: with both values and the servers that have them."""
    other = record("b", **{key: "other"})
    assert other.settings.fingerprint != settings().fingerprint
    (found,) = differences((other, record("a")))
    assert (found.key, found.values) == (key, (("a", BASE[key]), ("b", "other")))
    assert str(found) == f'{key} is {json.dumps(BASE[key])} on server a, "other" on server b'


def test_servers_that_agree_have_no_differences():
    assert differences(()) == ()
    assert differences((record("a"),)) == ()
    assert differences((record("a"), record("b"), record("c"))) == ()


def test_a_key_that_another_version_does_not_know_is_no_difference():
    """R39: a rolling upgrade alarms nobody, and hides no real difference."""
    newer = record("b", **{"x.new": 1})
    assert differences((record("a"), newer)) == ()
    both = record("b", **{"x.new": 1, "jwt.default_ttl": 60})
    assert [one.key for one in differences((record("a"), both))] == ["jwt.default_ttl"]


def test_false_and_zero_are_two_values():
    assert [one.key for one in differences((record("a"), record("b", **{"jwt.disabled": 0})))] == ["jwt.disabled"]


def test_a_long_value_is_cut_where_it_is_shown():
    (found,) = differences((record("a"), record("b", **{"jwt.issuer": "x" * 1000, "trust_domain": "y" * 1000})))
    assert found.key == "trust_domain"
    assert len(str(found)) < 250


def test_what_is_told_of_many_servers_and_values_is_bounded():
    """Logs and pages show enough to find the servers, whatever their number."""
    same = [record(f"a{number:03}") for number in range(100)]
    found = differences((*same, record("b", **{"jwt.default_ttl": 60})))
    assert list(map(str, found)) == [
        "jwt.default_ttl is 300 on server a000 and a001 and a002 and 97 others, 60 on server b"
    ]
    (found,) = differences(record(f"a{number}", **{"jwt.default_ttl": number}) for number in range(9))
    assert str(found).endswith(", 3 on server a3 and 5 other values")


def test_values_of_a_later_version_are_compared_as_text():
    """R39: what another version writes stops no server from starting."""
    later = IssuingSettings.parse(b'{"x": {"b": [1.5], "a": 2}, "y": true}')
    assert later == IssuingSettings.of({"x": '{"a":2,"b":[1.5]}', "y": True})


def test_servers_that_stopped_do_not_count_and_our_own_record_is_what_we_are_now():
    """R39: the alarm over a server that is gone ends by itself."""
    own = record("a", **{"jwt.default_ttl": 60})
    gone, late = record("b", NOW - PRESENT_SECONDS), record("c", NOW - PRESENT_SECONDS + 1)
    ahead = record("d", NOW + 3600)
    assert present((ahead, record("a"), gone, late), own, NOW) == (own, late, ahead)


def test_the_shortest_default_of_each_kind_holds():
    """R39: the same entry gets the same life whichever server is asked."""
    one = record("a", **{"svid.default_x509_ttl": 600, "wit.default_ttl": 60})
    other = record("b", **{"jwt.default_ttl": 30, "svid.agent_ttl": 7200})
    assert default_ttls(one.settings, (one, other)) == DefaultTtls(600, 3600, 30, 60)
    assert default_ttls(other.settings, (other, one)) == DefaultTtls(600, 3600, 30, 0), "off here stays off"
    assert default_ttls(one.settings, ()) == DefaultTtls(600, 3600, 300, 60)


@pytest.mark.parametrize("document", [b"[]", b"{", b"1", b"null", b"", b"\xff"])
def test_what_is_no_such_document_is_refused(document):
    with pytest.raises(ValueError):  # JSON's own errors are among them
        IssuingSettings.parse(document)


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        ({"svid": {"default_x509_ttl": "30m"}}, {"svid.default_x509_ttl", "svid.agent_ttl"}),
        ({"svid": {"agent_ttl": "30m"}}, {"svid.agent_ttl"}),
        ({"jwt": {"default_ttl": "1m"}}, {"jwt.default_ttl"}),
        ({"jwt": {"issuer": "https://idp.example.org"}}, {"jwt.issuer"}),
        ({"jwt": {"key_type": "rsa-2048"}}, {"jwt.key_type"}),
        ({"jwt": {"disabled": True}}, {"jwt.disabled", "jwt.default_ttl", "jwt.issuer", "jwt.key_type"}),
        ({"wit": {"enabled": True}}, {"wit.enabled", "wit.default_ttl", "wit.key_type"}),
        ({"ca": {"ttl": "48h"}}, {"ca.ttl"}),
        ({"ca": {"key_type": "ec-p384"}}, {"ca.key_type", "jwt.key_type"}),
        ({"ca": {"subject": {"common_name": "x"}}}, {"ca.subject"}),
        ({"ca": {"subject": {"organization": ["a", "b"]}}}, {"ca.subject"}),
        ({"trust_domain": "other.org"}, {"trust_domain"}),
        ({"bind_port": 9}, set()),
        ({"ca": {"key_manager": "memory"}}, set()),
        ({"jwt": {"key_type": "ec-p256"}}, set()),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_the_settings_that_show_in_what_is_issued_are_compared_and_no_others(table, keys):
    """R39: each by its name in the configuration; keys, sockets and limits are each server's own."""

    def of(server_id, **document):
        made = from_mapping({"trust_domain": "example.org", **document})
        return ServerRecord(server_id, IssuingSettings.of(made.issuing()), NOW)

    assert {one.key for one in differences((of("a"), of("b", **table)))} == keys
