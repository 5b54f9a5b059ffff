"""How a daemon says that it cannot go on: to a person at a terminal in words, to a log collector as its other lines."""

from __future__ import annotations

import logging
from typing import TextIO

from spiffe_core.runtime.logs import LogOutput

log = logging.getLogger(__name__)


def complain(
    text: str,
    output: LogOutput | None,
    *,
    program: str,
    stderr: TextIO,
    log_file: str,
    log_format: str,
    format_chosen: bool,
) -> int:
    """Say why the daemon ends; its exit code.

    On a terminal it is a line that can be read and a line with what to do next, unless `log_format = "json"` is asked
    for in so many words; without a terminal it is a line of the log. With a log file it is said in both places.
    """
    readable = stderr.isatty() and not (format_chosen and log_format == "json")
    if output is not None and (log_file or not readable):
        log.error("%s", text)
    if readable:
        if output is not None:
            output.close()  # the lines before come before
        what, _, advice = text.partition("; ")
        advice = advice or f"check the configuration with: {program} validate --config FILE"
        stderr.write(f"{program}: {what}\n    what to do next: {advice}\n")
    elif output is None or log_file:
        stderr.write(f"{program}: {text}\n")
    return 1
