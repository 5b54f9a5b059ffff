"""`files_config`: what `node-agent files` does, done inside the agent."""

from __future__ import annotations

import logging
from pathlib import Path

from node_agent.file_sets.service import FileSets
from node_agent.file_sets.settings import FilesSettings
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError
from workload_api.client import WorkloadApiClient

log = logging.getLogger(__name__)


class OwnFiles:
    """The work of `node-agent files` inside the agent: a workload like any other, on the agent's own socket.

    It gets what the agent's own process is entitled to by its selectors, and nothing by being the agent.
    """

    def __init__(self, files: FilesSettings, agent_socket: Path, clock: Clock) -> None:
        self._client = WorkloadApiClient(files.socket or f"unix://{agent_socket}", clock=clock)
        self._sets = FileSets(files, self._client, clock)

    async def run(self) -> None:
        """Keep the files current, until cancelled; an agent that cannot goes on serving everybody else."""
        try:
            await self._sets.run()
        except IdentityError as error:
            log.error(  # noqa: TRY400  # the message says it all
                "the files of files_config are not kept current any more: %s; correct its socket and restart the agent",
                error.public,
            )
        finally:
            await self._client.close()
