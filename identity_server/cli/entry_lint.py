"""`identity-server entry lint`, and the same warnings beside what `entry create` and `entry update` have written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import click
import grpc

from identity_server.cli.server import server_channel, server_flags
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.printing import as_json, clean, count_line, output_flag, print_json
from spiffe_core.wire._gen.muniment.server.explain.v1 import explain_pb2 as pb
from spiffe_core.wire.services import Stub

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Explain"]
LINT_SECONDS: Final = 300.0
WARNING_SECONDS: Final = 5.0
"""What has been written is not held up longer than this for a word on it."""
MOST_WARNED: Final = 500
"""Of a longer batch, so many entries are looked at; `entry lint` looks at all."""


@command(
    "lint",
    example="identity-server entry lint\nidentity-server entry lint -ignore MUN-L203 -ignore MUN-L401 -output json",
)
@flag("--ignore", multiple=True, metavar="CODE", help="A code that is not wanted. May be repeated.")
@flag("--entry-id", "entryID", multiple=True, help="Only the entry with this id. May be repeated.")
@server_flags
@output_flag
def lint(
    *,
    socket_path: str | None,
    instance: str | None,
    output: str,
    entry_id: tuple[str, ...],
    ignore: tuple[str, ...],
) -> int:
    """Look for what is wrong with registration entries, before a workload finds out.

    Entries that no agent can serve, that meet in one workload, that ask for selectors nobody makes or everybody has.
    The exit code is 1 if anything was found.
    """
    request = pb.LintEntriesRequest(ids=entry_id, ignored_codes=ignore)
    with server_channel(socket_path, instance) as channel:
        stub: Any = Stub(channel, SERVICE)
        answer = stub.LintEntries(request, timeout=LINT_SECONDS)
    if entry_id and answer.entries < len(set(entry_id)):
        raise Failure("one of these entries is not there", "`identity-server entry show` prints the ids")
    found = sum(answer.counts.values())
    if output == "json":
        print_json(answer)
        return 1 if found else 0
    for one in answer.findings:
        click.echo(f"{clean(one.code)} entry {clean(one.entry_id)} ({clean(one.spiffe_id)})")
        click.echo(f"    {clean(one.text)}")
        click.echo(f"    To mend it: {clean(one.fix)}\n")
    if found > len(answer.findings):
        click.echo(f"and {found - len(answer.findings)} more")
    if not answer.complete:
        click.echo("Entries below one parent are too many: not each was compared with each.")
    entries = count_line(answer.entries, "entry", "entries")
    counts = ", ".join(f"{code}: {answer.counts[code]}" for code in sorted(answer.counts))
    click.echo(f"Found {count_line(found, 'problem', 'problems')} in {entries}{f' ({counts})' if counts else ''}")
    return 1 if found else 0


def warnings_on(channel: grpc.Channel, ids: Sequence[str]) -> list[pb.LintFinding]:
    """What is to be said of entries that have just been written; nothing if the server cannot tell, or not soon."""
    if not ids:
        return []
    stub: Any = Stub(channel, SERVICE)
    request = pb.LintEntriesRequest(ids=ids[:MOST_WARNED])
    try:
        return list(stub.LintEntries(request, timeout=WARNING_SECONDS).findings)
    except grpc.RpcError:
        return []


def print_warnings(found: Sequence[pb.LintFinding], output: str) -> None:
    """On standard error, for programs as one line of JSON: standard output stays SPIRE's (architecture A13)."""
    if found and output == "json":
        tree = {"warnings": [as_json(one) for one in found]}
        click.echo(json.dumps(tree, separators=(",", ":"), ensure_ascii=False), err=True)
        return
    for one in found:
        click.echo(
            f"Warning: {clean(one.code)}: entry {clean(one.entry_id)}: {clean(one.text)}\n"
            f"  To mend it: {clean(one.fix)}",
            err=True,
        )
