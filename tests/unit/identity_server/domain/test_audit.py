"""Audit events as JSON objects (architecture A16)."""

import pytest

from identity_server.domain.audit import (
    AgentAttested,
    AgentChanged,
    AuditEvent,
    AuthorityChanged,
    BundleChanged,
    CallRefused,
    EntryChanged,
    JoinTokenCreated,
    LogLevelChanged,
    RelationshipChanged,
    SvidIssued,
    TokenIssued,
)

EVENTS = [
    AuthorityChanged("prepare", "aa"),
    EntryChanged("create", "id", "local"),
    BundleChanged("set", "fed.test", "local"),
    RelationshipChanged("create", "fed.test", "local"),
    LogLevelChanged("debug", "local"),
    AgentChanged("ban", "spiffe://example.org/spire/agent/x", "local"),
    AgentAttested("join_token", "attested", "anyone"),
    JoinTokenCreated("00ff", 5, "local"),
    SvidIssued("workload", "spiffe://example.org/w", "1", 5, "agent"),
    TokenIssued("jwt_svid", "spiffe://example.org/w", "kid", 5, "agent"),
    CallRefused("BatchNewX509SVID", "agent", "not yours"),
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
def test_only_leaves_and_refusals_may_wait_in_the_queue(event):
    assert event.flushed is not isinstance(event, SvidIssued | TokenIssued | CallRefused)
