"""`entry lint`: a seeded smell of each kind is found under its code, and a sound set of entries has none (needs 30, 31)."""

from dataclasses import replace

import pytest

from identity_server.domain import entry_lint, overlaps, reach
from identity_server.domain.entry_lint import Rules, lint
from identity_server.domain.lint_codes import MEANINGS, LintCode
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.types import entry_pb2
from spiffe_core.wire.convert_entry import entry_from_proto
from tests.builders import TD, make_bundle, selectors
from tests.doubles.state_maker import AGENT, StateMaker, attested, record

NOW = 1_000.0
SERVER = "/spire/server"
NODE = {"path": "/spire/agent/x509pop/0a1b2c3d", "serial": "7"}
FED = TrustDomain("fed.test")


def decode(wire):
    return entry_from_proto(entry_pb2.Entry.FromString(wire), trust_domain=TD)


def state_of(*records, agents=(), bundles=()):
    nodes = (attested(), *agents)
    maker = StateMaker()
    maker.apply(agents={one.spiffe_id.path: one for one in nodes}, bundles={one.trust_domain: one for one in bundles})
    return maker(*records)


def found(*records, only=None, agents=(), bundles=(), **rules):
    return lint(state_of(*records, agents=agents, bundles=bundles), Rules(NOW, **rules), decode, only)


def entry(entry_id="e", path="/web", parent=AGENT, *texts, **over):
    return record(entry_id, path, parent, selectors=selectors(*(texts or ("unix:uid:1000",))), **over)


BANNED = attested(path="/spire/agent/banned", serial="")
GROUPED = attested("x509pop:subject:cn:web", path="/spire/agent/x509pop/0a1b2c3d")

SMELLS = {
    "an agent with two letters swapped": (
        [entry("e", "/web", "/spire/agent/x509pop/0a1b2cd3")],
        {"agents": [GROUPED]},
        LintCode.UNKNOWN_AGENT,
        "the closest is spiffe://example.org/spire/agent/x509pop/0a1b2c3d",
        "-parentID spiffe://example.org/spire/agent/x509pop/0a1b2c3d",
    ),
    "an agent unlike all others": (
        [entry("e", "/web", "/spire/agent/x509pop/ffffffffffff")],
        {"agents": [GROUPED]},
        LintCode.UNKNOWN_AGENT,
        "2 others have",
        "agent list",
    ),
    "a parent that is nothing": (
        [entry("e", "/web", "/nowhere")],
        {},
        LintCode.UNKNOWN_PARENT,
        "neither an agent, nor a group of nodes, nor an entry's SPIFFE ID",
        "entry show -parentID spiffe://example.org/spire/server",
    ),
    "a group's name with a letter too many": (
        [entry("n", "/cluster", SERVER, "x509pop:subject:cn:web"), entry("e", "/web", "/clusters")],
        {"agents": [GROUPED]},
        LintCode.UNKNOWN_PARENT,
        "the closest is spiffe://example.org/cluster",
        "-parentID spiffe://example.org/cluster ",
    ),
    "a group that no agent is in": (
        [entry("n", "/group", SERVER, "x509pop:subject:cn:db"), entry("e", "/web", "/group")],
        {"agents": [GROUPED], "ignored": frozenset({LintCode.NODES_MATCH_NONE})},
        LintCode.PARENT_NOT_REACHED,
        "a group of nodes that no agent is in (node entry n)",
        "entry show",
    ),
    "a chain of parents that breaks off": (
        [entry("a", "/a", "/nowhere"), entry("b", "/b", "/a"), entry("c", "/c", "/b")],
        {"ignored": frozenset({LintCode.UNKNOWN_PARENT}), "only": {"c"}},
        LintCode.PARENT_NOT_REACHED,
        "above it stands spiffe://example.org/nowhere",
        "entry show",
    ),
    "a node entry that matches nobody": (
        [entry("n", "/group", SERVER, "x509pop:subject:cn:web", "x509pop:san:role:db")],
        {"agents": [GROUPED]},
        LintCode.NODES_MATCH_NONE,
        "x509pop/0a1b2c3d, lacks x509pop:san:role:db",
        "agent show",
    ),
    "a banned agent": (
        [entry("e", "/web", "/spire/agent/banned")],
        {"agents": [BANNED]},
        LintCode.PARENT_BANNED,
        "is banned",
        "entry delete -entryID e",
    ),
    "parents in a circle": (
        [entry("a", "/a", "/b"), entry("b", "/b", "/a", "unix:uid:1001")],
        {"only": {"a"}},
        LintCode.PARENT_LOOP,
        "in a circle",
        "-parentID AGENT",
    ),
    "the same selectors twice": (
        [entry("a", "/a"), entry("b", "/b")],
        {},
        LintCode.DUPLICATE,
        "entry a (spiffe://example.org/a) has the same parent and selectors",
        "entry delete -entryID b",
    ),
    "an entry that adds nobody": (
        [entry("a", "/web"), entry("b", "/web", AGENT, "unix:uid:1000", "unix:gid:1000")],
        {},
        LintCode.SHADOWED,
        "adds nobody",
        "entry delete -entryID b",
    ),
    "an entry within another one": (
        [entry("a", "/any"), entry("b", "/web", AGENT, "unix:uid:1000", "unix:gid:1000")],
        {},
        LintCode.OVERLAP,
        "also gets spiffe://example.org/any by entry a",
        "-hint",
    ),
    "a new entry around another one": (
        [entry("a", "/any"), entry("b", "/web", AGENT, "unix:uid:1000", "unix:gid:1000")],
        {"only": {"a"}},
        LintCode.OVERLAP,
        "also gets spiffe://example.org/any by entry a",
        "-hint",
    ),
    "root": ([entry("e", "/web", AGENT, "unix:uid:0")], {}, LintCode.OVER_BROAD, "every process of root", "TYPE:VALUE"),
    "a namespace": ([entry("e", "/web", AGENT, "k8s:ns:shop")], {}, LintCode.OVER_BROAD, "every pod", "TYPE:VALUE"),
    "labels in any namespace": (
        [entry("e", "/web", AGENT, "k8s:pod-label:app:web", "k8s:sa:web")],
        {},
        LintCode.OVER_BROAD,
        "in every namespace",
        "TYPE:VALUE",
    ),
    "labels of an engine": (
        [entry("e", "/web", AGENT, "docker:label:app:web", "docker:env:A=1")],
        {},
        LintCode.OVER_BROAD,
        "whoever starts a container",
        "TYPE:VALUE",
    ),
    "a misspelt type": (
        [entry("e", "/web", AGENT, "unxi:uid:1000")],
        {},
        LintCode.UNKNOWN_TYPE,
        "did you mean unix:uid:1000?",
        "-selector unix:uid:1000",
    ),
    "a type of nobody's": (
        [entry("e", "/web", AGENT, "sorcery:a:b")],
        {},
        LintCode.UNKNOWN_TYPE,
        "sorcery",
        "attestor",
    ),
    "a misspelt type of nodes": (
        [entry("n", "/group", SERVER, "x509pob:subject:cn:web")],
        {"ignored": frozenset({LintCode.NODES_MATCH_NONE})},
        LintCode.UNKNOWN_TYPE,
        "did you mean x509pop:subject:cn:web?",
        "x509pop:subject:cn:web",
    ),
    "a misspelt kind": (
        [entry("e", "/web", AGENT, "k8s:ns:shop", "k8s:pod_name:web-0")],
        {},
        LintCode.UNKNOWN_KIND,
        "did you mean k8s:pod-name:web-0?",
        "-selector k8s:pod-name:web-0",
    ),
    "an ID too long for Google Cloud": (
        [entry("e", "/" + "a" * 120)],
        {},
        LintCode.ID_TOO_LONG,
        "Google Cloud (127)",
        "shorter path",
    ),
    "an expired entry": (
        [entry("e", "/web", AGENT, expires_at=999)],
        {},
        LintCode.EXPIRED,
        "has expired",
        "-entryExpiry",
    ),
    "a bundle that is not here": (
        [entry("e", "/web", AGENT, federates_with=(FED,))],
        {},
        LintCode.NO_BUNDLE,
        "fed.test, whose bundle is not here",
        "bundle set -id spiffe://fed.test",
    ),
}


@pytest.mark.parametrize("name", SMELLS)
def test_a_seeded_smell_is_found_and_nothing_else(name):
    records, over, code, text, fix = SMELLS[name]
    report = found(*records, **over)
    assert [one.code for one in report.findings] == [code]
    (finding,) = report.findings
    assert text in finding.text
    assert fix in finding.fix
    assert report.counts == {code: 1}
    assert report.complete


def test_every_code_has_a_smell_and_a_meaning():
    assert {code for _, _, code, _, _ in SMELLS.values()} == set(LintCode) == set(MEANINGS)


SOUND = (
    entry("n", "/group", SERVER, "x509pop:subject:cn:web"),
    entry("t", "/named", AGENT, f"spiffe_id:spiffe://example.org{AGENT}"),
    entry("a", "/a", "/group"),
    entry("b", "/b", "/a", "k8s:ns:shop", "k8s:sa:web"),
    entry("c", "/c", "/named", "unix:user:web"),
    entry("d", "/d", AGENT, "unix:uid:1", hint="one"),
    entry("e", "/e", AGENT, "unix:uid:1", hint="two"),
    entry("f", "/f", AGENT, "docker:image_id:r.org/web@sha256:aa", "docker:label:app:web"),
    entry("g", "/g", AGENT, "vendor:thing:a"),
    entry("h", "/h", AGENT, "unix:uid:0", "unix:path:/usr/bin/web", federates_with=(FED,)),
    entry("i", "/i", AGENT, "gcp_secretmanager:name:web", store_svid=True),
    entry("j", "/j", AGENT, "unix:uid:2", x509_svid_ttl=60),
    entry("k", "/j", AGENT, "unix:uid:2", "unix:gid:2", x509_svid_ttl=3600),
    entry("l", "/l", "/spire/agent/x509pop/0a1b2c3d", "unix:uid:1", expires_at=2_000),
)


def test_sound_entries_have_no_findings():
    """Groups, nested entries, names by join token, hints, plugins' types, stores: none is told of."""
    report = found(
        *SOUND,
        agents=[GROUPED],
        bundles=[make_bundle(), make_bundle(trust_domain="fed.test")],
        types=frozenset({"vendor"}),
    )
    assert report.findings == []
    assert report.entries == len(SOUND)
    for one in SOUND:
        alone = found(
            *SOUND, only={one.id}, agents=[GROUPED], bundles=[make_bundle(trust_domain="fed.test")], types={"vendor"}
        )
        assert (alone.findings, alone.entries) == ([], 1), one.id


def test_what_is_told_is_bounded_and_everything_is_counted(monkeypatch):
    monkeypatch.setattr(entry_lint, "MAX_FINDINGS", 2)
    report = found(*(entry(f"e{n}", f"/w{n}", AGENT, "unix:uid:0", f"unix:uud:{n}") for n in range(5)))
    assert len(report.findings) == 2
    assert report.counts == {LintCode.UNKNOWN_KIND: 5}


def test_comparisons_are_bounded_and_giving_up_is_said(monkeypatch):
    monkeypatch.setattr(overlaps, "MAX_COMPARISONS", 3)
    report = found(*(entry(f"e{n}", f"/w{n}", AGENT, "unix:uid:1", f"unix:gid:{n}") for n in range(9)))
    assert not report.complete


def test_the_closest_is_looked_for_a_bounded_number_of_times(monkeypatch):
    """Every entry below an agent of its own that has not attested: all are told of, the first with the closest."""
    monkeypatch.setattr(reach, "MOST_LOOKS", 2)
    slips = [entry(f"e{n}", f"/w{n}", f"/spire/agent/x509pop/0a1b2c3{n}") for n in range(5)]
    report = found(*slips, agents=[GROUPED])
    assert report.counts == {LintCode.UNKNOWN_AGENT: 5}
    assert ["the closest" in one.text for one in report.findings] == [True, True, False, False, False]


def test_of_many_with_the_same_selectors_few_are_told():
    report = found(*(entry(f"e{n:02}", f"/w{n}") for n in range(50)))
    assert report.complete
    assert report.counts[LintCode.DUPLICATE] <= 50 * overlaps.MOST_TOLD


def test_an_agent_that_is_not_banned_any_more_serves_again():
    records = [entry("e", "/web", "/spire/agent/banned")]
    assert found(*records, agents=[replace(BANNED, serial="8")]).findings == []


def test_single_entries_of_a_large_parent_are_not_compared(monkeypatch):
    """`entry create` is not held up by what the whole of a parent would take."""
    monkeypatch.setattr(entry_lint, "MAX_SIBLINGS", 1)
    report = found(entry("a", "/a"), entry("b", "/b"), only={"b"})
    assert (report.findings, report.entries) == ([], 1)
