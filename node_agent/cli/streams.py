"""A stream of the Workload API, followed until Ctrl-C: it comes back by itself when the agent restarts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from node_agent.cli.endpoint import AGENT
from spiffe_core.terminal.connection import connect
from spiffe_core.terminal.failures import Failure
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.services import Stub

SERVICE: Final = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
SECURITY_HEADER: Final = (("workload.spiffe.io", "true"),)
_LONGEST_PAUSE: Final = 30.0


def follow(target: str, call: Callable[[Any], Iterator[Any]], show: Callable[[Any, int], None]) -> None:
    """Hand each message of `call` to `show` with its number, from 1.

    Raises:
        Failure: there was no message at all, or the agent will never answer this.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs begin with it ignored
    updates, pause = 0, 1.0
    try:
        while True:
            try:
                with connect(target, AGENT) as channel:
                    for response in call(Stub(channel, SERVICE)):
                        updates, pause = updates + 1, 1.0
                        show(response, updates)
            except Failure as failure:
                if not updates or failure.final:
                    raise
                click.echo(f"{failure.what}; asking again in {pause:.0f}s", err=True)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
    except KeyboardInterrupt:
        return
