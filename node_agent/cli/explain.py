"""`node-agent explain`: why a workload gets its identities, or none."""

from __future__ import annotations

from typing import Any, Final

import click

from node_agent.cli.admin import AGENT_ADMIN, admin_flags, admin_target
from spiffe_core.explanation_codes import Code
from spiffe_core.terminal.connection import CALL_SECONDS, connect
from spiffe_core.terminal.explanation import print_explanation
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.printing import output_flag, print_json
from spiffe_core.wire._gen.muniment.agent.explain.v1 import explain_pb2 as pb
from spiffe_core.wire.services import Stub

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Explain"]


@command(
    "explain",
    example="node-agent explain --pid 4711\nnode-agent explain --pod shop/web-0\nnode-agent explain 7f3a9c1e\n"
    "node-agent explain --selector unix:uid:1000 --selector unix:gid:1000",
)
@click.argument("refusal", required=False, metavar="[ID]")
@flag("--selector", multiple=True, help="A selector the workload would have, as type:value. May be repeated.")
@flag("--socket-peer", "socketPeer", switch=True, help="The process that asks: what would this command itself get?")
@flag("--pod", metavar="NAMESPACE/NAME", help="A pod of this node, container by container.")
@flag("--pid", type=int, default=0, help="The process, by the number that the agent sees.")
@admin_flags
@output_flag
def explain(
    *,
    socket_path: str | None,
    output: str,
    pid: int,
    pod: str | None,
    socket_peer: bool | None,
    selector: tuple[str, ...],
    refusal: str | None,
) -> int:
    """Tell why a workload gets its identities, or none.

    ID is what a refused workload was told, in parentheses after "no identity issued".  The first line is the root cause
    with its code, the last one what would mend it.  The exit code is 0 if the workload is served.
    """
    asked: list[dict[str, Any]] = [
        *([{"refusal": refusal}] if refusal else []),
        *([{"pid": pid}] if pid else []),
        *([{"pod": _pod(pod)}] if pod else []),
        *([{"caller": True}] if socket_peer else []),
        *([{"selectors": pb.Selectors(selectors=selector)}] if selector else []),
    ]
    if len(asked) != 1:
        raise Failure(
            "give one of ID, --pid, --pod, --socket-peer and --selector", "for example: node-agent explain --pid 4711"
        )
    with connect(admin_target(socket_path), AGENT_ADMIN) as channel:
        answer = Stub(channel, SERVICE).Explain(pb.ExplainRequest(**asked[0]), timeout=CALL_SECONDS)
    if output == "json":
        print_json(answer)
    else:
        print_explanation(answer, by_agent=True)
    return 0 if answer.code == Code.SERVED.value else 1


def _pod(text: str) -> pb.Pod:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise Failure("--pod needs a namespace and a name", "for example: --pod shop/web-0")
    return pb.Pod(namespace=namespace, name=name)
