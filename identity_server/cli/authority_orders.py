"""Forced rotation for all servers that share a database: `--all-servers`, and the commands that show how far it is."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.printing import clean, count_line, output_flag, print_json, timestamp
from spiffe_core.wire._gen.muniment.server.authorityorders.v1 import authorityorders_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["AuthorityOrders"]
DEFAULT_WAIT: Final = 30.0
"""Activating takes 10 seconds; a server that runs has done it by then."""
LONGEST_WAIT: Final = 3600.0
_LOOK_AGAIN: Final = 0.25
_WORDS: Final = {
    pb.Report.STATUS_UNSPECIFIED: "unknown",
    pb.Report.STATUS_WAITING: "waiting",
    pb.Report.STATUS_DONE: "done",
    pb.Report.STATUS_FAILED: "failed",
    pb.Report.STATUS_GIVEN_UP: "given up",
}
_KINDS: Final = {"x509": pb.KIND_X509, "jwt": pb.KIND_JWT, "wit": pb.KIND_WIT}
_KIND_WORDS: Final[dict[int, str]] = {pb.KIND_X509: "X.509", pb.KIND_JWT: "JWT", pb.KIND_WIT: "WIT"}
_VERBS: Final = {
    "prepare": pb.VERB_PREPARE,
    "activate": pb.VERB_ACTIVATE,
    "taint": pb.VERB_TAINT,
    "revoke": pb.VERB_REVOKE,
}


def order_everywhere(
    kind: str, verb: str, *, wait: float, socket_path: str | None, instance: str | None, output: str
) -> None:
    """Order a step of all servers, wait until each has taken it, and show who has.

    Raises:
        Failure: one of them failed, or has not done it within `wait` seconds; it still does when it returns.
    """
    if wait > LONGEST_WAIT:
        raise Failure(f"--wait must be at most {LONGEST_WAIT:.0f} s", "look again later with `localauthority orders`")
    with server_channel(socket_path, instance) as channel:
        call = Service(channel, SERVICE)
        order = call("PlaceOrder", pb.PlaceOrderRequest(kind=_KINDS[kind], verb=_VERBS[verb])).order
        end = time.monotonic() + wait
        while _count(order, pb.Report.STATUS_WAITING) and time.monotonic() < end:
            time.sleep(_LOOK_AGAIN)
            order = call("GetOrder", pb.GetOrderRequest(order_id=order.order_id)).order
    if output == "json":
        print_json(order)
    else:
        _print_order(order)
    _judge(order)


def _judge(order: pb.Order) -> None:
    failed = _count(order, pb.Report.STATUS_FAILED)
    late = _count(order, pb.Report.STATUS_WAITING)
    if failed:
        raise Failure(
            f"{count_line(failed, 'server', 'servers')} could not do it",
            "put right what the reports name, then give the order again",
        )
    if late:
        raise Failure(
            f"{count_line(late, 'server has', 'servers have')} not done it yet",
            "each does it when it runs again; look with `localauthority orders`, or give up a server that will not "
            "come back with `localauthority give-up-server`",
            final=False,
        )


def _count(order: pb.Order, status: int) -> int:
    return sum(report.status == status for report in order.reports)


@command("orders", example="identity-server localauthority orders")
@server_flags
@output_flag
def orders(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Show the orders to all servers, newest first, and which server has carried them out."""
    answer = _ask("ListOrders", pb.ListOrdersRequest(), socket_path, instance)
    if output == "json":
        print_json(answer)
        return
    click.echo(f"Found {count_line(len(answer.orders), 'order', 'orders')}")
    for order in answer.orders:
        click.echo()
        _print_order(order)


@command("servers", example="identity-server localauthority servers")
@server_flags
@output_flag
def servers(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Show the signing authorities of every server that shares the database."""
    answer = _ask("ListAuthorities", pb.ListAuthoritiesRequest(), socket_path, instance)
    if output == "json":
        print_json(answer)
        return
    ids = list(dict.fromkeys(one.server_id for one in answer.authorities))
    click.echo(f"Found {count_line(len(ids), 'server', 'servers')}")
    for server_id in ids:
        own = [one for one in answer.authorities if one.server_id == server_id]
        click.echo(f"\nServer {clean(server_id)}{' (this one)' if own[0].this_server else ''}:")
        for one in own:
            tainted = ", tainted" if one.tainted else ""
            click.echo(f"  {_KIND_WORDS.get(one.kind, '?')} {clean(one.status)}{tainted}: {clean(one.authority_id)}")
            click.echo(f"    Expires at: {timestamp(one.expires_at)}")


@command(
    "give-up-server",
    example="identity-server localauthority give-up-server --server-id 0b0f1c52-6f1e-4d1c-9d3e-2a54f0a7c111",
)
@flag(
    "--server-id", "serverID", required=True, help="The server that will not come back; see `localauthority servers`."
)
@server_flags
@output_flag
def give_up(*, socket_path: str | None, instance: str | None, output: str, server_id: str) -> None:
    """Give up a server that will not come back.

    Its authorities become old, so they can be tainted and revoked by their ids, and no order waits for it any more. A
    server that was only thought to be gone makes new authorities at once.
    """
    answer = _ask("GiveUpServer", pb.GiveUpServerRequest(server_id=server_id), socket_path, instance)
    if output == "json":
        print_json(answer)
        return
    click.echo(f"Retired {count_line(len(answer.retired), 'authority', 'authorities')} of server {clean(server_id)}")
    for one in answer.retired:
        click.echo(f"  {_KIND_WORDS.get(one.kind, '?')}: {clean(one.authority_id)}")
    if answer.retired:
        click.echo("They still verify: taint each, wait until its SVIDs are replaced, then revoke it.")


def _ask(method: str, request: Any, socket_path: str | None, instance: str | None) -> Any:
    with server_channel(socket_path, instance) as channel:
        return Service(channel, SERVICE)(method, request)


def _print_order(order: pb.Order) -> None:
    verb = pb.Verb.Name(order.verb).removeprefix("VERB_").capitalize()
    about = f" {clean(order.authority_id)}" if order.authority_id else ""
    click.echo(f"{verb} {_KIND_WORDS.get(order.kind, '?')} authority{about}, order {clean(order.order_id)}")
    click.echo(f"  Ordered at: {timestamp(order.created_at)} by {clean(order.actor)}")
    for report in order.reports:
        name = f"{clean(report.server_id)}{' (this one)' if report.this_server else ''}"
        detail = f": {clean(report.detail)}" if report.detail else ""
        click.echo(f"  Server {name}: {_WORDS[report.status]}{detail}")
