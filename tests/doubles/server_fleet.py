"""Several servers on one database and one agent that knows them all, as real processes."""

from __future__ import annotations

import re
import time
from typing import Self

from deploy.demo.stack import Daemon, LocalStack

ROOTS_SECONDS = 60.0
_CONNECTED = re.compile(r"connected to the server at 127\.0\.0\.1:(\d+)")


class ServerFleet:
    """`first` is the stack with the agent; the others are servers only."""

    def __init__(
        self,
        url: str,
        count: int,
        *,
        trust_domain: str = "fleet.test",
        server: str = "",
        agent: str = "",
        sync_interval: str = "1s",
    ) -> None:
        text = f'{server}[database]\nurl = "{url}"\n'
        self.stacks = [
            LocalStack(trust_domain, server=text, agent=agent, sync_interval=sync_interval) for _ in range(count)
        ]
        self.first = self.stacks[0]
        self.first.server_ports = [one.port for one in self.stacks]
        self.first.write_configs()

    def start(self) -> Self:
        """Servers, and the agent once each server's bundle holds the roots of all."""
        for one in self.stacks:
            one.spawn_server()
        for one in self.stacks:
            assert one.server is not None
            one.server.wait_serving(one.admin_socket, ROOTS_SECONDS)
        deadline = time.monotonic() + ROOTS_SECONDS
        for one in self.stacks:
            while one.admin("bundle", "show").count("BEGIN CERTIFICATE") < len(self.stacks):
                assert time.monotonic() < deadline, "a server does not know the roots of all"
                time.sleep(0.1)
        self.first.prepare_join()
        self.first.start_agent()
        return self

    def chosen(self) -> LocalStack:
        """The server that the agent connected to last."""
        port = int(_CONNECTED.findall(self.agent.log.read_text())[-1])
        return next(one for one in self.stacks if one.port == port)

    @property
    def agent(self) -> Daemon:
        """The agent's process."""
        assert self.first.agent is not None
        return self.first.agent

    def close(self) -> None:
        for one in self.stacks:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
