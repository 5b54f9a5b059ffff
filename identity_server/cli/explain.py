"""`identity-server explain`: what a workload of some agent is entitled to, and why not to more."""

from __future__ import annotations

from typing import Final

from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.explanation_codes import Code
from spiffe_core.terminal.explanation import print_explanation
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.printing import output_flag, print_json
from spiffe_core.wire._gen.muniment.server.explain.v1 import explain_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Explain"]


@command(
    "explain",
    example="identity-server explain --agent spiffe://example.org/spire/agent/x509pop/1a2b --selector unix:uid:1000",
)
@flag("--selector", multiple=True, help="What the workload has, as type:value. May be repeated.")
@flag("--agent", required=True, help="The agent's SPIFFE ID.")
@server_flags
@output_flag
def explain(
    *, socket_path: str | None, instance: str | None, output: str, agent: str, selector: tuple[str, ...]
) -> int:
    """Tell why an agent's workload gets its identities, or none.

    The first line is the root cause with its code, the last one what would mend it.  The exit code is 0 if the workload
    is entitled to an identity.  `node-agent explain` on the node asks about a running process.
    """
    if not selector:
        raise Failure("at least one --selector is needed", "`node-agent explain --pid N` on the node shows a process's")
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("Explain", pb.ExplainRequest(agent_id=agent, selectors=selector))
    if output == "json":
        print_json(answer)
    else:
        print_explanation(answer)
    return 0 if answer.code == Code.SERVED.value else 1
