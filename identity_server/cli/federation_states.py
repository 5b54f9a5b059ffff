"""Federation relationships for people: what they are, and how the fetches of their bundles go."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import click

from identity_server.cli.federation_data import Relationship
from spiffe_core.terminal.printing import clean
from spiffe_core.wire._gen.muniment.server.federation.v1 import federation_pb2

STATES: Final = federation_pb2.DESCRIPTOR.services_by_name["Federation"]
NEVER: Final = "never"


def print_relationship(relationship: Relationship, *, err: bool = False) -> None:
    """The relationship itself, in SPIRE's words."""
    profile = relationship.WhichOneof("bundle_endpoint_profile") or ""
    rows = [
        ("Trust domain", relationship.trust_domain),
        ("Bundle endpoint URL", relationship.bundle_endpoint_url),
        ("Bundle endpoint profile", profile),
    ]
    if profile == "https_spiffe":
        rows.append(("Endpoint SPIFFE ID", relationship.https_spiffe.endpoint_spiffe_id))
    print_rows(rows, err=err)


def print_state(state: federation_pb2.State) -> None:
    """How its fetches go on the server that was asked."""
    rows = [("Where it stands", "in the configuration file" if state.configured else "in the database")]
    if state.has_bundle:
        held = f"{_count(state.x509_authorities, 'X.509')}, {_count(state.jwt_authorities, 'JWT')}"
        rows.append(("Bundle", f"sequence {state.sequence}, {held}"))
    else:
        rows.append(("Bundle", "none: no SVID of this trust domain is trusted"))
    rows += [
        ("Last fetch", moment(state.fetched_at)),
        ("Next fetch", moment(state.next_at) if state.next_at else "due"),
    ]
    if state.error:
        rows.append(("Last error", f"{state.error} (at {moment(state.attempted_at)}, {state.failures} in a row)"))
    rows += [("Warning", warning) for warning in state.warnings]
    print_rows(rows)


def print_rows(rows: list[tuple[str, str]], *, err: bool = False) -> None:
    """A name and a value to each line."""
    for name, value in rows:
        click.echo(f"{name:<26}: {clean(value)}", err=err)


def moment(seconds: int) -> str:
    """A time in UTC, "never" for 0."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else NEVER


def _count(number: int, kind: str) -> str:
    return f"{number} {kind} {'authority' if number == 1 else 'authorities'}"
