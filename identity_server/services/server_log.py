"""Use-case: turn the level of the running server's log, and back."""

from __future__ import annotations

import logging

from identity_server.domain.access import Caller
from identity_server.domain.audit import LogLevelChanged
from identity_server.ports import AuditLog, LogLevel
from identity_server.services.audited import audited

log = logging.getLogger(__name__)


class ServerLog:
    """Turns the log's level for an administrator."""

    def __init__(self, level: LogLevel, audit: AuditLog) -> None:
        self._level = level
        self._audit = audit

    @property
    def current(self) -> str:
        """The level in force."""
        return self._level.current

    @property
    def launch(self) -> str:
        """The level the server was started with."""
        return self._level.launch

    def turn(self, caller: Caller, name: str) -> None:
        """Log what is at least as grave as `name`, until it is turned again or the server is started anew."""
        with audited(self._audit, LogLevelChanged(level=name, actor=caller.actor)):
            log.warning("the log level is turned from %s to %s", self._level.current, name)
            self._level.turn(name)

    def reset(self, caller: Caller) -> None:
        """Back to the level the server was started with."""
        self.turn(caller, self._level.launch)
