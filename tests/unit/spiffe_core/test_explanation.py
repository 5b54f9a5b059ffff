"""Seeded misconfigurations: the right root cause on line 1, the right fix on the last (architecture A10)."""

from datetime import UTC, datetime, timedelta

import pytest

from spiffe_core.errors import Reason
from spiffe_core.explanation import explain, explain_no_pod, explain_pod, with_elsewhere
from spiffe_core.explanation_codes import MEANINGS, Code
from spiffe_core.explanation_facts import (
    AgentFacts,
    Asked,
    ContainerExplanation,
    Elsewhere,
    Findings,
    Issue,
    Outcome,
)
from spiffe_core.selectors import Selector
from tests.builders import make_entry, selectors

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
AGENT = AgentFacts("spiffe://example.org/spire/agent/a", member=True, ready=True, pushed=True, synced_before=1.0)
WEB = make_entry(id="web", selectors=selectors("unix:uid:1000"))
NAMES_AGENT = make_entry(
    id="node",
    spiffe_id="spiffe://example.org/node",
    selectors=selectors("spiffe_id:spiffe://example.org/spire/agent/a"),
)
HELD = {"web": Issue(NOW + timedelta(hours=1))}
MINE = selectors("unix:uid:1000", "unix:gid:1000", "unix:path:/usr/bin/web")


def found(**over):
    values = {
        "process": "pid 7, uid 1000, gid 1000",
        "selectors": MINE,
        "entries": (WEB,),
        "types": frozenset({"unix"}),
    }
    values["asked"] = (Asked("unix", over.get("selectors") or frozenset()),)
    return Findings(over.pop("agent", AGENT), **{**values, **over})


def entry(*texts, **over):
    return make_entry(id="web", selectors=selectors(*texts), **over)


CASES = {
    "all is well": (found(issues=HELD), Code.SERVED, "spiffe://example.org/web", "nothing"),
    "banned agent": (
        found(agent=AgentFacts("spiffe://example.org/spire/agent/a", banned=True)),
        Code.BANNED,
        "banned",
        "agent evict -spiffeID spiffe://example.org/spire/agent/a",
    ),
    "agent not joined": (
        found(agent=AgentFacts(why="the token was refused", waits_for="a new token")),
        Code.NOT_JOINED,
        "the token was refused",
        "a new token",
    ),
    "agent not joined, and it knows what is to be done": (
        found(agent=AgentFacts(why="failed to attest", advice="run `identity-server token generate`")),
        Code.NOT_JOINED,
        "failed to attest",
        "run `identity-server token generate`",
    ),
    "agent in another time": (
        found(agent=AgentFacts(why="a certificate is of 2036", waits_for="the server", reason=Reason.NOT_YET_VALID)),
        Code.NOT_JOINED,
        "2036",
        "clock",
    ),
    "agent whose clock is hours behind": (
        found(agent=AgentFacts(why="a certificate ended in 2026", waits_for="the server", reason=Reason.EXPIRED)),
        Code.NOT_JOINED,
        "ended in 2026",
        "timedatectl",
    ),
    "agent whose trouble only sounds like its clock": (
        found(agent=AgentFacts(why="the token expired: compare the clocks", waits_for="a new token")),
        Code.NOT_JOINED,
        "the token expired",
        "the agent waits for a new token",
    ),
    "agent of another trust domain": (
        found(agent=AgentFacts(why="it is of another", waits_for="the server", reason=Reason.OTHER_TRUST_DOMAIN)),
        Code.NOT_JOINED,
        "it is of another",
        "correct trust_domain, or server_address",
    ),
    "agent that holds no bundle": (
        found(agent=AgentFacts(why="no bundle of a different trust domain", waits_for="a", reason=Reason.NO_BUNDLE)),
        Code.NOT_JOINED,
        "no bundle",
        "the agent waits for a",
    ),
    "banned agent that has forgotten who it is": (
        found(agent=AgentFacts(banned=True)),
        Code.BANNED,
        "banned",
        "agent list -banned",
    ),
    "nothing in the way of selectors": (
        found(
            types=frozenset({"unix", "k8s"}),
            asked=(Asked("unix", MINE), Asked("k8s", notes=("the process runs in no container",))),
            entries=(entry("unix:uid:1000", "k8s:ns:prod"),),
        ),
        Code.SELECTOR_MISSING,
        "the k8s attestor found nothing: the process runs in no container",
        "run the workload where the entry expects it",
    ),
    "agent never synced": (
        found(agent=AgentFacts(member=True, sync_trouble="cannot reach the server")),
        Code.NEVER_SYNCED,
        "cannot reach the server",
        "make the server reachable",
    ),
    "process gone": (
        found(no_process="there is no process 7", process="", selectors=None),
        Code.NO_PROCESS,
        "no process 7",
        "hostPID",
    ),
    "attestation failed as a whole": (
        found(selectors=None, asked=(Asked("unix", error="took too long"),)),
        Code.ATTESTATION_FAILED,
        "unix: took too long",
        "names",
    ),
    "no entries for this agent": (
        found(entries=()),
        Code.NO_ENTRIES,
        "spire/agent/a",
        "entry create -parentID spiffe://example.org/spire/agent/a",
    ),
    "no entries but the one that names this agent": (
        found(entries=(NAMES_AGENT,)),
        Code.NO_ENTRIES,
        "spire/agent/a or spiffe://example.org/node",
        "entry create -parentID spiffe://example.org/node",
    ),
    "another user, with an entry that names this agent": (
        found(entries=(NAMES_AGENT, entry("unix:uid:1001", "k8s:ns:prod"))),
        Code.TYPE_NOT_ATTESTED,
        "k8s:ns:prod",
        "[attestors.k8s]",
    ),
    "another user": (
        found(entries=(entry("unix:uid:1001"),)),
        Code.SELECTOR_DIFFERS,
        "asks for unix:uid:1001; the workload has unix:uid:1000",
        "-selector unix:uid:1000",
    ),
    "sha256 of an updated binary": (
        found(
            selectors=selectors("unix:uid:1000", "unix:sha256:bb"), entries=(entry("unix:uid:1000", "unix:sha256:aa"),)
        ),
        Code.SELECTOR_DIFFERS,
        "unix:sha256:aa; the workload has unix:sha256:bb",
        "-selector unix:sha256:bb -selector unix:uid:1000",
    ),
    "another path": (
        found(entries=(entry("unix:path:/usr/bin/wep"),)),
        Code.SELECTOR_DIFFERS,
        "/usr/bin/wep",
        "/usr/bin/web",
    ),
    "supplementary group missing": (
        found(entries=(entry("unix:uid:1000", "unix:supplementary_gid:44"),)),
        Code.SELECTOR_MISSING,
        "unix:supplementary_gid:44, which the workload does not have",
        "-selector unix:uid:1000",
    ),
    "misspelt selector": (
        found(entries=(entry("unix:uid:1000", "unix:usr:web"),)),
        Code.SELECTOR_MISSPELT,
        "'usr' is no kind of unix selectors; the closest is 'user'",
        "-selector unix:uid:1000 -selector unix:user:web",
    ),
    "misspelt type and nothing else": (
        found(entries=(entry("unx:uid:1000"),)),
        Code.SELECTOR_MISSPELT,
        "'unx' is no type; the closest is 'unix'",
        "-selector unix:uid:1000",
    ),
    "wrong selector type and nothing else": (
        found(entries=(entry("k8s:ns:prod"),)),
        Code.TYPE_NOT_ATTESTED,
        "no attestor k8s",
        "attestors.k8s",
    ),
    "another value of one of several labels": (
        found(
            types=frozenset({"k8s"}),
            selectors=selectors("k8s:pod-label:app:web", "k8s:pod-label:tier:front"),
            entries=(entry("k8s:pod-label:tier:back"),),
        ),
        Code.SELECTOR_DIFFERS,
        "k8s:pod-label:tier:back; the workload has k8s:pod-label:tier:front",
        "-selector k8s:pod-label:tier:front",
    ),
    "an image by another digest": (
        found(
            types=frozenset({"k8s"}),
            selectors=selectors("k8s:pod-image:r.org/web:1", "k8s:pod-image:r.org/web@sha256:bb"),
            entries=(entry("k8s:pod-image:r.org/web@sha256:aa"),),
        ),
        Code.SELECTOR_DIFFERS,
        "web@sha256:aa; the workload has k8s:pod-image:r.org/web@sha256:bb",
        "-selector k8s:pod-image:r.org/web@sha256:bb",
    ),
    "wrong selector type": (
        found(entries=(entry("unix:uid:1000", "k8s:ns:prod"),)),
        Code.TYPE_NOT_ATTESTED,
        "no attestor k8s",
        "attestors.k8s",
    ),
    "kubelet 401": (
        found(
            types=frozenset({"unix", "k8s"}),
            asked=(Asked("unix", MINE), Asked("k8s", error="the kubelet answered 401")),
            entries=(entry("unix:uid:1000", "k8s:ns:prod"),),
        ),
        Code.ATTESTOR_FAILED,
        "k8s attestor failed: the kubelet answered 401",
        "attestor says; the entry may stay",
    ),
    "attestor time-out": (
        found(
            types=frozenset({"unix", "docker"}),
            asked=(Asked("unix", MINE), Asked("docker", error="took too long")),
            entries=(entry("unix:uid:1000", "docker:label:a:b"),),
        ),
        Code.ATTESTOR_FAILED,
        "docker",
        "attestor says; the entry may stay",
    ),
    "another namespace": (
        found(
            types=frozenset({"k8s"}),
            selectors=selectors("k8s:ns:test", "k8s:sa:web"),
            entries=(entry("k8s:ns:prod", "k8s:sa:web"),),
        ),
        Code.SELECTOR_DIFFERS,
        "k8s:ns:prod; the workload has k8s:ns:test",
        "-selector k8s:ns:test -selector k8s:sa:web",
    ),
    "nothing close": (
        found(types=frozenset({"unix", "k8s"}), entries=(entry("k8s:ns:prod"),)),
        Code.NOTHING_CLOSE,
        "comes close",
        "entry create",
    ),
    "expired entry": (
        found(entries=(entry("unix:uid:1000", expires_at=1),)),
        Code.ENTRY_EXPIRED,
        "has expired",
        "-entryExpiry",
    ),
    "only for a store": (
        found(entries=(entry("unix:uid:1000", store_svid=True),)),
        Code.STORED_ONLY,
        "store_svid",
        "entry create",
    ),
    "server refuses to sign": (
        found(issues={"web": Issue(refused="entry not found or not authorized")}),
        Code.SIGNING_REFUSED,
        "entry not found or not authorized",
        "audit log",
    ),
    "SVID ended": (
        found(
            agent=AgentFacts("a", member=True, ready=True, synced_before=900.0, sync_trouble="connection refused"),
            issues={"web": Issue(NOW - timedelta(seconds=1))},
        ),
        Code.SVID_ENDED,
        "connection refused",
        "reachable",
    ),
    "another agent's entry": (
        found(entries=(), elsewhere=Elsewhere(2, "spiffe://example.org/spire/agent/b")),
        Code.WRONG_PARENT,
        "2 entries match below another parent, spiffe://example.org/spire/agent/b",
        "entry show -parentID spiffe://example.org/spire/agent/b",
    ),
    "another agent's entry, to an administrator": (
        found(
            entries=(), signed=False, elsewhere=Elsewhere(1, "x", entry("unix:uid:1000", parent_id="/spire/agent/b"))
        ),
        Code.WRONG_PARENT,
        "its parent is spiffe://example.org/spire/agent/b; this agent is spiffe://example.org/spire/agent/a",
        "entry update -entryID web -parentID spiffe://example.org/spire/agent/a",
    ),
    "a near miss of one's own comes before another agent's entry": (
        found(entries=(entry("unix:uid:1001"),), elsewhere=Elsewhere(1, "x")),
        Code.SELECTOR_DIFFERS,
        "unix:uid:1001",
        "update",
    ),
    "an agent nobody knows": (
        found(
            agent=AgentFacts(
                "spiffe://example.org/spire/agent/z", unknown=True, why="spiffe://example.org/spire/agent/a"
            )
        ),
        Code.UNKNOWN_AGENT,
        "the closest is spiffe://example.org/spire/agent/a",
        "agent list",
    ),
    "entitled, by the server": (found(signed=False), Code.SERVED, "is entitled to", "nothing"),
    "SVID on its way": (found(), Code.BEING_FETCHED, "on its way", "again"),
    "no match and out of touch": (
        found(
            agent=AgentFacts("a", member=True, ready=True, synced_before=900.0, sync_trouble="connection refused"),
            entries=(),
        ),
        Code.OUT_OF_TOUCH,
        "connection refused",
        "reachable",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_root_cause_and_what_mends_it(name):
    given, code, cause, fix = CASES[name]
    answer = explain(given, NOW)
    assert answer.code is code
    assert cause in answer.cause
    assert fix in answer.fix
    served = code is Code.SERVED
    assert served == all(one.outcome is not Outcome.FAILED for one in answer.steps)


def test_every_code_has_a_case_and_a_meaning():
    of_pods = {Code.POD_UNKNOWN, Code.POD_NOT_ASKED, Code.POD_EMPTY}
    assert {code for _, code, _, _ in CASES.values()} | of_pods == set(Code) == set(MEANINGS)
    assert len({code.value for code in Code}) == len(Code)


def container(name, *, init=False, **over):
    return ContainerExplanation(name, init, 7, explain(found(**over), NOW))


SERVED, LACKING = {"issues": HELD}, {"entries": (entry("unix:uid:1001"),)}


@pytest.mark.parametrize(
    ("containers", "code", "named"),
    [
        ([container("app", **SERVED), container("proxy", **SERVED)], Code.SERVED, "app"),
        ([container("app", **SERVED), container("proxy", **LACKING)], Code.SELECTOR_DIFFERS, "proxy"),
        ([container("app", **SERVED), container("setup", init=True, **LACKING)], Code.SERVED, "app"),
        ([container("setup", init=True, **LACKING), container("app", **LACKING)], Code.SELECTOR_DIFFERS, "app"),
        ([container("setup", init=True, **LACKING)], Code.SELECTOR_DIFFERS, "setup"),
    ],
    ids=["all served", "one is not", "the one that only starts it is not", "both are not", "it is still starting"],
)
def test_a_pod_is_as_well_as_its_first_container_that_is_not(containers, code, named):
    answer = explain_pod(AGENT, "shop/web-0", containers)
    assert answer.code is code
    assert answer.cause.startswith(f"container {named}: ")


def test_a_pod_without_containers_or_unknown_is_a_cause_of_its_own_unless_the_agent_is_one():
    assert explain_pod(AGENT, "shop/web-0", ()).code is Code.POD_EMPTY
    assert explain_no_pod(AGENT, Code.POD_UNKNOWN, "no such pod", "look").code is Code.POD_UNKNOWN
    assert explain_no_pod(AgentFacts(banned=True), Code.POD_UNKNOWN, "no such pod", "look").code is Code.BANNED


def test_the_chain_goes_from_the_agent_to_the_signature():
    answer = explain(found(issues=HELD), NOW)
    assert [one.name for one in answer.steps] == ["agent", "process", "attestor unix", "entries", "match", "SVID"]


def test_the_nearest_misses_are_shown_with_what_is_missing_and_what_is_there():
    entries = tuple(
        make_entry(id=f"e{n}", spiffe_id=f"/e{n}", selectors=selectors(*(f"unix:uid:{1001 + k}" for k in range(n + 1))))
        for n in range(5)
    )
    (match,) = [one for one in explain(found(entries=entries), NOW).steps if one.name == "match"]
    named = [line for line in match.details if line.startswith("nearest")]
    assert [line.split()[2] for line in named] == ["e0", "e1", "e2"]
    assert "  asks for unix:uid:1001; there is unix:uid:1000" in match.details


def test_an_entry_that_differs_in_one_value_comes_before_one_that_lacks_another_selector():
    entries = (
        make_entry(id="a", selectors=selectors("unix:sha256:x")),
        make_entry(id="b", selectors=selectors("unix:uid:1001")),
    )
    assert "entry b" in explain(found(entries=entries), NOW).cause


def test_a_selector_with_shell_characters_is_quoted_in_the_command():
    value = Selector("unix", "path:/tmp/a b;rm")
    answer = explain(found(selectors=frozenset({value}), entries=(entry("unix:path:/tmp/x"),)), NOW)
    assert "-selector 'unix:path:/tmp/a b;rm'" in answer.fix


def test_given_selectors_skip_the_process():
    answer = explain(Findings(AGENT, selectors=MINE, entries=(WEB,), issues=HELD, types=frozenset({"unix"})), NOW)
    assert answer.code is Code.SERVED
    assert answer.steps[1].outcome is Outcome.SKIPPED


@pytest.mark.parametrize("entries", [(), (entry("unix:uid:1001"),)], ids=["no entry", "a near miss"])
def test_a_refusal_is_completed_by_what_the_server_says_later(entries):
    before = explain(found(entries=entries), NOW)
    after = with_elsewhere(before, Elsewhere(1, "spiffe://example.org/spire/agent/b"), AGENT.agent_id)
    assert after.code is (Code.WRONG_PARENT if not entries else Code.SELECTOR_DIFFERS)
