"""The process around every daemon: logs, limits, the loop, signals, and a word about why it ends (architecture A7)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, Protocol

import uvloop

from spiffe_core.errors import IdentityError
from spiffe_core.runtime.logs import LogOutput, setup_logging
from spiffe_core.runtime.process import hand_back_memory, refuse_dumps
from spiffe_core.runtime.refusal import complain
from spiffe_core.wire.wake_ups import drain_wake_ups

log = logging.getLogger(__name__)


class LogSettings(Protocol):
    """What a configuration says of logs."""

    @property
    def log_level(self) -> str:
        """From which level on."""
        ...

    @property
    def log_file(self) -> str:
        """Where to; "" for standard error."""
        ...

    @property
    def log_format(self) -> str:
        """`json` or `text`."""
        ...

    @property
    def log_source_location(self) -> bool:
        """Whether each line says which line of the program wrote it."""
        ...

    @property
    def model_fields_set(self) -> set[str]:
        """What somebody chose."""
        ...


def run(
    settings: LogSettings, serve: Callable[[LogOutput], Coroutine[Any, Any, int]], *, program: str, what: str
) -> int:
    """Run `serve` to its end; the process's exit code: what `serve` says, or 1 if it could not start or go on.

    `program` is the command a person would type, `what` names the daemon in a sentence.
    """
    output: LogOutput | None = None

    def ended(text: str) -> int:
        return complain(
            text,
            output,
            program=program,
            stderr=sys.stderr,
            log_file=settings.log_file,
            log_format=settings.log_format,
            format_chosen="log_format" in settings.model_fields_set,
        )

    try:
        output = setup_logging(
            settings.log_level,
            settings.log_file or None,
            style=settings.log_format,
            located=settings.log_source_location,
        )
        refuse_dumps()
        hand_back_memory()
        drain_wake_ups()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(output))
    except IdentityError as error:
        return ended(error.public)
    except BaseExceptionGroup as group:
        log.critical("a loop of the %s died; stopping", what, exc_info=group)
        return ended(f"a loop of the {what} died, see the log")
    finally:
        if output is not None:
            output.close()


def leave(code: int) -> NoReturn:
    """End the process without waiting for threads that hang in the kernel."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def told_to_stop() -> asyncio.Event:
    """Set by SIGTERM and SIGINT from now on."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
