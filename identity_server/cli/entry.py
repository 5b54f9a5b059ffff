"""`identity-server entry`: show, count and delete registration entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from google.protobuf.wrappers_pb2 import BoolValue, StringValue

from identity_server.cli import entry_text, waiting
from identity_server.cli.filters import federates_with_match, match_flag, selector_flag, selector_match, spiffe_id
from identity_server.cli.server import Service, server_channel, server_flags
from identity_server.cli.waiting import waitable
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import Row, clean, count_line, output_flag, print_json, print_records
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as types_pb2

SERVICE = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
PAGE = 500
MAX_PAGES = 20_000


@click.group(
    "entry",
    cls=Group,
    lazy={
        "create": ("identity_server.cli.entry_edit:create", "Create registration entries"),
        "lint": ("identity_server.cli.entry_lint:lint", "Look for what is wrong with registration entries"),
        "update": ("identity_server.cli.entry_edit:update", "Replace registration entries"),
    },
)
def group() -> None:
    """Registration entries: which selectors are entitled to which SPIFFE ID."""


def filter_flags(function: F) -> F:
    """The flags that `show` and `count` have in common."""
    decorators: list[Callable[[Any], Any]] = [
        match_flag("--match-federates-with-on", "matchFederatesWithOn", "trust domains"),
        match_flag("--match-selectors-on", "matchSelectorsOn", "selectors"),
        flag("--hint", help="Only entries with this hint."),
        flag("--downstream", switch=True, help="Only entries of downstream servers."),
        flag("--federates-with", "federatesWith", multiple=True, help="A trust domain. May be repeated."),
        selector_flag,
        flag("--spiffe-id", "spiffeID", help="Only entries for this SPIFFE ID."),
        flag("--parent-id", "parentID", help="Only entries below this parent."),
    ]
    for decorate in decorators:
        function = decorate(function)
    return function


def _filter(kind: type[Any], given: dict[str, Any]) -> Any:
    """The filter that the flags describe, as `ListEntriesRequest.Filter` or its twin for counting."""
    parts: dict[str, Any] = {
        "by_selectors": selector_match(given["selector"], given["match_selectors_on"]),
        "by_federates_with": federates_with_match(given["federates_with"], given["match_federates_with_on"]),
    }
    if given["spiffe_id"]:
        parts["by_spiffe_id"] = spiffe_id(given["spiffe_id"], "--spiffe-id")
    if given["parent_id"]:
        parts["by_parent_id"] = spiffe_id(given["parent_id"], "--parent-id")
    if given["hint"] is not None:
        parts["by_hint"] = StringValue(value=given["hint"])
    if given["downstream"] is not None:
        parts["by_downstream"] = BoolValue(value=given["downstream"])
    return kind(**parts)


@command(
    "show",
    example="""identity-server entry show --spiffe-id spiffe://example.org/web
identity-server entry show -selector unix:uid:1000 -matchSelectorsOn subset -output json""",
)
@filter_flags
@flag("--entry-id", "entryID", help="Only the entry with this id; excludes the other filters.")
@flag("--in-force", "inForce", switch=True, help="Also tell how many of the agents that may have it have it.")
@server_flags
@output_flag
def show(
    *,
    socket_path: str | None,
    instance: str | None,
    output: str,
    entry_id: str | None,
    in_force: bool | None,
    **given: Any,
) -> None:
    """Show registration entries.

    Without filters all of them, else those that every filter accepts.
    """
    if entry_id is not None and any(given[name] for name in ("spiffe_id", "parent_id", "selector", "federates_with")):
        raise Failure("--entry-id cannot be combined with other filters", "give either the id or the filters")
    with server_channel(socket_path, instance) as channel:
        call = Service(channel, SERVICE)
        if entry_id is not None:
            entries = [call("GetEntry", entry_pb2.GetEntryRequest(id=entry_id))]
        else:
            entries = all_entries(call, _filter(entry_pb2.ListEntriesRequest.Filter, given))
        standing = waiting.in_force(channel, [entry.id for entry in entries]) if in_force else {}
    entries.sort(key=lambda entry: (entry.spiffe_id.path, entry.parent_id.path, entry.id))
    if output == "json":
        answer = entry_pb2.ListEntriesResponse(entries=entries)
        counted = [propagation_pb2.CountInForceResponse(entries=standing.values())] if in_force else []
        print_json(answer, *counted)
        return
    click.echo(f"Found {count_line(len(entries), 'entry', 'entries')}")

    def block(entry: types_pb2.Entry) -> list[Row]:
        more = [("In force", waiting.in_force_text(standing.get(entry.id)))] if in_force else []
        return [*entry_text.block(entry), *more]

    def cells(entry: types_pb2.Entry) -> list[str]:
        return [*entry_text.cells(entry), *([waiting.in_force_text(standing.get(entry.id))] if in_force else [])]

    print_records(entries, block, (*entry_text.COLUMNS, *(["In force"] if in_force else [])), cells)


def all_entries(call: Service, wanted: entry_pb2.ListEntriesRequest.Filter) -> list[types_pb2.Entry]:
    """Every entry that fits, page by page."""
    entries: list[types_pb2.Entry] = []
    token = ""
    for _ in range(MAX_PAGES):
        page = call("ListEntries", entry_pb2.ListEntriesRequest(filter=wanted, page_size=PAGE, page_token=token))
        entries += page.entries
        token = page.next_page_token
        if not token:
            return entries
    raise Failure(f"the server has more than {MAX_PAGES} pages of entries", "narrow the question with filters")


@command("count", example="identity-server entry count -parentID spiffe://example.org/spire/agent/join_token/abc")
@filter_flags
@server_flags
@output_flag
def count(*, socket_path: str | None, instance: str | None, output: str, **given: Any) -> None:
    """Count registration entries.

    Without filters all of them, else those that every filter accepts.
    """
    wanted = _filter(entry_pb2.CountEntriesRequest.Filter, given)
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("CountEntries", entry_pb2.CountEntriesRequest(filter=wanted))
    if output == "json":
        print_json(answer)
    else:
        click.echo(count_line(answer.count, "registration entry", "registration entries"))


@command("delete", example="identity-server entry delete --entry-id 5a6b7c8d-0000-4000-8000-000000000000")
@flag("--entry-id", "entryID", help="The entry to delete.")
@flag("--file", metavar="FILE|-", help='A JSON file of entries to delete: {"ids": [...]}.')
@waitable
@server_flags
@output_flag
def delete(
    *, socket_path: str | None, instance: str | None, output: str, entry_id: str | None, file: str | None
) -> int:
    """Delete registration entries.

    Workloads lose the identity at their agent's next update.
    """
    if bool(entry_id) == bool(file):
        raise Failure("one of --entry-id and --file is needed", "give the id that `entry show` prints")
    ids = [entry_id] if entry_id else _ids_of(file or "")
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("BatchDeleteEntry", entry_pb2.BatchDeleteEntryRequest(ids=ids))
    failed = [result for result in answer.results if result.status.code]
    if output == "json":
        print_json(answer)
        return 1 if failed else 0
    for result in answer.results:
        if not result.status.code:
            click.echo(f"Deleted entry with ID: {clean(result.id)}")
    for result in failed:
        click.echo(f"Failed to delete entry with ID {clean(result.id)}: {clean(result.status.message)}", err=True)
    return 1 if failed else 0


def _ids_of(file: str) -> list[str]:
    from identity_server.cli.entry_data import read_ids

    return read_ids(file)


for _command in (show, count, delete):
    group.add_command(_command)
