"""Audit events as JSON objects (architecture A16)."""

import json
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    members_of,
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
    assert list(json.loads(f"{{{members_of(event)}}}").items()) == [
        ("event", "entry"),
        ("change", "create"),
        ("entry_id", "id"),
        ("actor", "local"),
        ("spiffe_id", "spiffe://example.org/w"),
    ]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_a_line_says_all_that_an_event_holds(event):
    """Of every kind of event, with a value in each of its fields; what a caller chose cannot end the line (S65)."""
    values = {"str": 'a"\n\u2028é', "int": 7, "int | None": 0, "tuple[str, ...]": ('x"', "y\n")}
    full = replace(event, **{item.name: values[item.type] for item in fields(event)})
    line = members_of(full)
    assert json.loads(f"{{{line}}}") == {
        "event": event.event,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(full).items()},
    }
    assert line.isascii()
    assert "\n" not in line


@given(st.text(), st.integers(), st.lists(st.text(), min_size=1).map(tuple))
def test_any_text_is_written_as_the_encoder_writes_it(text, number, many):
    """S64: surrogates and separators too."""
    event = TokenIssued("jwt_svid", text, "kid", number, "agent", audience=many)
    written = {
        "event": "token",
        **{name: value for name, value in asdict(event).items() if value not in ("", (), None)},
    }
    assert f"{{{members_of(event)}}}" == json.dumps(written, separators=(",", ":"))


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
