"""S1, S45, S77: who may call what."""

import itertools

import pytest

from identity_server.domain.access import ACCESS, Caller, CallerKind, allowed_kinds, decide
from spiffe_core.errors import Forbidden, Internal
from spiffe_core.spiffe_id import SpiffeId

AGENT = "/spire.api.server.agent.v1.Agent/"
ENTRY = "/spire.api.server.entry.v1.Entry/"
SVID = "/spire.api.server.svid.v1.SVID/"
BUNDLE = "/spire.api.server.bundle.v1.Bundle/"


def ask(method, **facts):
    given = {"local": False, "identified": False, "admin": False, "downstream": False, **facts}
    return decide(method, **given)


def test_a_method_without_a_row_is_refused_as_our_fault():
    """S1, S24: deny by default."""
    with pytest.raises(Internal, match="no authorization rule"):
        allowed_kinds("/spire.api.server.entry.v1.Entry/DropEverything")
    with pytest.raises(Internal):
        ask("/spire.api.server.entry.v1.Entry/DropEverything", local=True, identified=True, admin=True)


def test_anyone_comes_first():
    """Bundle and attestation are there for strangers, also when they are more than that."""
    for facts in ({}, {"local": True}, {"identified": True, "admin": True}):
        assert ask(BUNDLE + "GetBundle", **facts) is CallerKind.ANYONE
        assert ask(AGENT + "AttestAgent", **facts) is CallerKind.ANYONE


def test_an_anonymous_network_caller_is_no_administrator():
    """S45: the network address counts for nothing."""
    with pytest.raises(
        Forbidden, match=r"authorization denied for method /spire\.api\.server\.entry\.v1\.Entry/ListEntries"
    ):
        ask(ENTRY + "ListEntries")


def test_a_local_caller_is_no_agent():
    """spire_features section 8.1: agent-only methods are not for the admin socket."""
    for method in (AGENT + "RenewAgent", ENTRY + "SyncAuthorizedEntries", SVID + "BatchNewX509SVID"):
        with pytest.raises(Forbidden):
            ask(method, local=True)


def test_an_agent_is_no_administrator():
    for method in (ENTRY + "BatchCreateEntry", SVID + "MintX509SVID", AGENT + "BanAgent"):
        with pytest.raises(Forbidden):
            ask(method, identified=True)


def test_an_administrator_by_entry_may_write_entries():
    assert ask(ENTRY + "BatchCreateEntry", identified=True, admin=True) is CallerKind.ADMIN


def test_an_administrator_still_has_to_be_an_active_agent_for_agents_methods():
    assert ask(ENTRY + "SyncAuthorizedEntries", identified=True, admin=True) is CallerKind.AGENT


def test_only_a_downstream_entry_allows_what_is_for_downstream_servers():
    method = SVID + "NewDownstreamX509CA"
    assert ask(method, identified=True, downstream=True) is CallerKind.DOWNSTREAM
    for facts in ({"local": True}, {"identified": True}, {"identified": True, "admin": True}):
        with pytest.raises(Forbidden):
            ask(method, **facts)


def test_flags_of_a_caller_without_a_certificate_of_ours_count_for_nothing():
    """S1: `admin` without a verified identity of this trust domain cannot happen, and would not help."""
    with pytest.raises(Forbidden):
        ask(ENTRY + "ListEntries", admin=True, downstream=True)


def test_the_whole_matrix_says_yes_only_where_the_table_does():
    """S1: every method and every combination of facts."""
    for method, kinds in ACCESS.items():
        for local, identified, admin, downstream in itertools.product((False, True), repeat=4):
            held = {CallerKind.ANYONE}
            held |= {CallerKind.LOCAL} if local else set()
            if identified:
                held |= {CallerKind.AGENT}
                held |= {CallerKind.ADMIN} if admin else set()
                held |= {CallerKind.DOWNSTREAM} if downstream else set()
            facts = {"local": local, "identified": identified, "admin": admin, "downstream": downstream}
            if held & kinds:
                assert decide(method, **facts) in held & kinds
            else:
                with pytest.raises(Forbidden):
                    decide(method, **facts)


def test_a_caller_is_named_by_id_and_origin():
    who = SpiffeId.parse("spiffe://example.org/spire/agent/join_token/x")
    assert Caller(CallerKind.AGENT, "10.0.0.1:999", who).actor == f"{who} (10.0.0.1:999)"
    assert Caller(CallerKind.LOCAL, "pid 1, uid 0").actor == "local (pid 1, uid 0)"
