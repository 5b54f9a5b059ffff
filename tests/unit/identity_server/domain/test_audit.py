"""Audit events as JSON objects (architecture A16)."""

from dataclasses import replace

import pytest

from identity_server.domain.audit import (
    BEGUN,
    DONE,
    FAILED,
    MAX_REASON,
    REFUSED,
    AgentAttested,
    AgentChanged,
    AuditEvent,
    AuthorityChanged,
    AuthorityOrdered,
    BundleChanged,
    CallEnded,
    CallRefused,
    EntryChanged,
    JoinTokenCreated,
    LogLevelChanged,
    RelationshipChanged,
    SvidIssued,
    TokenIssued,
)
from spiffe_core.errors import Internal, NotFound, Unavailable

EVENTS = [
    AuthorityChanged("prepare", "aa"),
    AuthorityOrdered("taint", "local", "x509"),
    EntryChanged("create", "id", "local"),
    BundleChanged("set", "fed.test", "local"),
    RelationshipChanged("create", "fed.test", "local"),
    LogLevelChanged("debug", "local"),
    AgentChanged("ban", "spiffe://example.org/spire/agent/x", "local"),
    AgentAttested("join_token", "anyone"),
    JoinTokenCreated("00ff", 5, "local"),
    SvidIssued("workload", "spiffe://example.org/w", "1", 5, "agent"),
    TokenIssued("jwt_svid", "spiffe://example.org/w", "kid", 5, "agent"),
    CallRefused("BatchNewX509SVID", "agent"),
    CallEnded("/s/m", "OK"),
]


def test_the_name_comes_first_and_empty_fields_are_left_out():
    event = EntryChanged(change="create", entry_id="id", actor="local", spiffe_id="spiffe://example.org/w")
    assert list(event.document().items()) == [
        ("event", "entry"),
        ("change", "create"),
        ("entry_id", "id"),
        ("actor", "local"),
        ("spiffe_id", "spiffe://example.org/w"),
    ]


def test_every_kind_has_its_own_name():
    kinds = {kind.event for kind in AuditEvent.__subclasses__()}
    assert len({event.event for event in EVENTS}) == len(EVENTS) == len(kinds)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_only_leaves_and_what_has_happened_may_wait_in_the_queue(event):
    waits = isinstance(event, SvidIssued | TokenIssued | CallRefused | CallEnded)
    assert replace(event, outcome=BEGUN).precedes is not waits
    assert event.ended().precedes is isinstance(event, AgentAttested)
    assert event.issues is isinstance(event, SvidIssued | TokenIssued)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, DONE),
        (NotFound("no such entry"), REFUSED),
        (Unavailable("the database is away"), FAILED),
        (Internal("ours"), FAILED),
        (KeyError("x"), FAILED),
    ],
    ids=["none", "not found", "unavailable", "internal", "a bug"],
)
def test_the_outcome_follows_from_how_it_ended(error, outcome):
    """What is the caller's fault is refused, what is ours has failed; a bug's text is not told."""
    told = EVENTS[1].ended(error)
    assert told.outcome == outcome
    assert bool(told.reason) is (error is not None)
    assert "'x'" not in told.reason


def test_the_reason_is_bounded():
    """S58."""
    assert len(EVENTS[1].ended(NotFound("n" * 10_000)).reason) == MAX_REASON
