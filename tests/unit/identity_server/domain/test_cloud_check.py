"""What verifiers outside do not take is said beforehand, with a code that stays (issue 6 item 5)."""

import json
import shlex
from dataclasses import replace

import pytest

from identity_server.domain.cloud_check import Presented, Severity, Subject, documents_findings, findings
from identity_server.domain.cloud_configuration import MAX_ROLE, MOST_SUBJECTS, commands
from identity_server.domain.oidc_documents import IssuerUrl, configuration_document, key_set
from identity_server.domain.verifier_rules import VERIFIERS
from spiffe_core.bundle import JwtAuthority, TrustBundle
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import InvalidRequest
from spiffe_core.spiffe_id import TrustDomain

TD = TrustDomain("example.org")
ISSUER = "https://oidc.example.org"
WEB = "spiffe://example.org/web"
ONE = (Subject(WEB),)
KINDS = {"rsa": KeyKind.RSA_2048, "p256": KeyKind.EC_P256, "p384": KeyKind.EC_P384}


@pytest.fixture(scope="module")
def spki():
    return {name: spki_der(generate(kind).public_key()) for name, kind in KINDS.items()}


def bundle(spki, *kinds):
    keys = tuple(JwtAuthority(f"{kind}-{number}", spki[kind]) for number, kind in enumerate(kinds))
    return TrustBundle(TD, jwt_authorities=keys)


def codes(verifier, presented):
    return {one.code: one.severity for one in findings(VERIFIERS[verifier], presented)}


def presented(spki, *kinds, issuer=ISSUER, subjects=ONE, audiences=("aud",)):
    return Presented(issuer, bundle(spki, *kinds), tuple(subjects), tuple(audiences))


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_what_everybody_takes_has_no_findings(verifier, spki):
    """An RSA key, a plain issuer, a short name."""
    assert codes(verifier, presented(spki, "rsa")) == {}


def path(length):
    return Subject(WEB + "x" * (length - len(WEB)))


LONG = "https://oidc.example.org/" + "a" * 250
SITUATIONS = {
    "no issuer": ({"issuer": ""}, "CLOUD-ISSUER-UNKNOWN", {"aws", "gcp", "azure", "vault"}),
    "http": ({"issuer": "http://oidc.example.org"}, "CLOUD-ISSUER-URL", {"aws", "gcp", "azure", "vault"}),
    "a query": ({"issuer": f"{ISSUER}?a"}, "CLOUD-ISSUER-URL", {"aws", "gcp", "azure", "vault"}),
    "a port": ({"issuer": f"{ISSUER}:8443"}, "CLOUD-ISSUER-PORT", {"aws"}),
    "the usual port": ({"issuer": f"{ISSUER}:443"}, "CLOUD-ISSUER-PORT", set()),
    "256 characters": ({"issuer": LONG[:256]}, "CLOUD-ISSUER-LENGTH", {"aws"}),
    "255 characters": ({"issuer": LONG[:255]}, "CLOUD-ISSUER-LENGTH", set()),
    "a private address": ({"issuer": "https://10.0.0.1"}, "CLOUD-ISSUER-PRIVATE", {"aws", "gcp", "azure"}),
    "a private name": ({"issuer": "https://oidc.internal"}, "CLOUD-ISSUER-PRIVATE", {"aws", "gcp", "azure"}),
    "128 bytes": ({"subjects": [path(128)]}, "CLOUD-SUBJECT-LENGTH", {"gcp"}),
    "127 bytes": ({"subjects": [path(127)]}, "CLOUD-SUBJECT-LENGTH", set()),
    "256 bytes": ({"subjects": [path(256)]}, "CLOUD-SUBJECT-LENGTH", {"gcp", "aws"}),
    "601 bytes": ({"subjects": [path(601)]}, "CLOUD-SUBJECT-LENGTH", {"gcp", "aws", "azure"}),
    "21 names": ({"subjects": [Subject(f"{WEB}{n}") for n in range(21)]}, "CLOUD-SUBJECT-COUNT", {"azure"}),
    "two days": ({"subjects": [Subject(WEB, 172_800)]}, "CLOUD-TOKEN-LIFETIME", {"gcp"}),
    "nearly two days": ({"subjects": [Subject(WEB, 172_799)]}, "CLOUD-TOKEN-LIFETIME", set()),
    "256 in an audience": ({"audiences": ["a" * 256]}, "CLOUD-AUDIENCE-LENGTH", {"aws"}),
    "257 in an audience": ({"audiences": ["a" * 257]}, "CLOUD-AUDIENCE-LENGTH", {"aws", "gcp"}),
    "two audiences": ({"audiences": ["a", "b"]}, "CLOUD-AUDIENCE-COUNT", {"azure"}),
    "eleven audiences": ({"audiences": [str(n) for n in range(11)]}, "CLOUD-AUDIENCE-COUNT", {"azure", "gcp"}),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_each_limit_is_found_for_those_who_have_it_and_for_nobody_else(name, spki):
    """Just above, and not just below."""
    over, code, expected = SITUATIONS[name]
    shown = presented(spki, "rsa", **over)
    assert {verifier for verifier in VERIFIERS if code in codes(verifier, shown)} == expected


KEYS = {
    "none": ((), "CLOUD-KEY-NONE", dict.fromkeys(VERIFIERS, Severity.ERROR)),
    "P-256 only": (("p256",), "CLOUD-KEY-ALGORITHM", {"azure": Severity.ERROR}),
    "P-384 only": (("p384",), "CLOUD-KEY-ALGORITHM", {"azure": Severity.ERROR, "gcp": Severity.ERROR}),
    "P-256 on the way out": (("rsa", "p256"), "CLOUD-KEY-ALGORITHM", {"azure": Severity.WARNING}),
    "101 EC keys": (("p256",) * 101, "CLOUD-KEY-COUNT", {"aws": Severity.ERROR}),
    "100 of each": (("p256", "rsa") * 100, "CLOUD-KEY-COUNT", {}),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_a_verifier_does_not_take_are_found(name, spki):
    """An error if none is left that it takes, a warning while some are."""
    kinds, code, expected = KEYS[name]
    found = {verifier: codes(verifier, presented(spki, *kinds)).get(code) for verifier in VERIFIERS}
    assert {verifier: severity for verifier, severity in found.items() if severity} == expected


def test_six_authorities_are_more_than_aws_takes(spki):
    """Five thumbprints."""
    shown = replace(presented(spki, "rsa"), authorities=(b"x",) * 6)
    assert "CLOUD-THUMBPRINT-COUNT" in codes("aws", shown)
    assert "CLOUD-THUMBPRINT-COUNT" not in codes("aws", replace(shown, authorities=(b"x",) * 5))


def test_long_lists_are_cut(spki):
    """Five are named, the others counted."""
    (one,) = findings(VERIFIERS["gcp"], presented(spki, "rsa", subjects=[path(n) for n in range(200, 210)]))
    assert one.text.endswith("and 5 more")
    assert one.source


def test_the_documents_must_name_the_issuer_and_hold_every_key(spki):
    """Discovery 1.0 section 4.3: letter for letter."""
    shown = presented(spki, "rsa", "p256")
    right = json.loads(configuration_document(ISSUER, IssuerUrl.parse(ISSUER).keys_url))
    keys = json.loads(key_set(shown.bundle.jwt_authorities, use=True))
    assert documents_findings(shown, right, keys) == ()
    some = {"keys": keys["keys"][:1]}
    assert [one.code for one in documents_findings(shown, {**right, "issuer": f"{ISSUER}/"}, some)] == [
        "CLOUD-DOCUMENT-ISSUER",
        "CLOUD-DOCUMENT-KEYS",
    ]
    assert [one.code for one in documents_findings(shown, right, {"keys": "none"})] == ["CLOUD-DOCUMENT-KEYS"]


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_commands_are_words_that_a_shell_takes_apart_as_they_were_meant(verifier):
    """Ten SPIFFE IDs at most; the issuer stands in them letter for letter."""
    subjects = [f"{WEB}/{number}" for number in range(MOST_SUBJECTS + 2)]
    made = commands(verifier, ISSUER, subjects, ["an-audience"], ["ES256", "RS256"])
    text = "\n".join(made)
    assert "oidc.example.org" in text
    assert f"{WEB}/{MOST_SUBJECTS - 1}" in text
    assert f"{WEB}/{MOST_SUBJECTS}" not in text
    for one in made:
        assert shlex.split(one, comments=True)[0].partition("=")[0] in {
            "aws",
            "gcloud",
            "az",
            "vault",
            "ACCOUNT",
            "APP",
            "PROJECT",
        }
    if verifier == "azure":
        given = json.loads(shlex.split(made[1])[-1])
        assert given == {"name": "web-0", "issuer": ISSUER, "subject": f"{WEB}/0", "audiences": ["an-audience"]}
    if verifier == "vault":
        assert "jwt_supported_algs=ES256,RS256" in text


@pytest.mark.parametrize("word", ["a b", "a'b", "$(id)", "`id`", "-a", "a;b", "a\nb", 'a"b', "a,b", ""])
def test_what_would_mean_something_to_a_shell_gets_into_no_command(word):
    """Audiences come from the command line, names from the registry; both are looked at."""
    for subjects, audiences in (([WEB], [word]), ([word], ["a"])):
        with pytest.raises(InvalidRequest, match="to stand in a command"):
            commands("aws", ISSUER, subjects, audiences, [])


def test_names_of_roles_are_short_and_plain():
    """AWS allows 64 characters."""
    made = commands("aws", ISSUER, [f"{WEB}/{'a/' * 60}end", "spiffe://example.org"], ["a"], [])
    names = [shlex.split(one)[4] for one in made[2:]]
    assert all(len(name) <= MAX_ROLE for name in names)
    assert names[0].endswith("end")
    assert names[1] == "workload"


def test_every_rule_says_who_says_so():
    """A number without a source is a rumour."""
    for rules in VERIFIERS.values():
        assert rules.algorithms_source
        limits = [getattr(rules, name) for name in rules.__slots__]
        assert all(one.source for one in limits if hasattr(one, "source"))
        assert replace(rules) == rules
