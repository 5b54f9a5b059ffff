"""Environment variables in a settings file, put in before the file is read (`--expand-env`, SPIRE's -expandEnv).

`$NAME` and `${NAME}` stand for the variable's text, everywhere but in lines that are comments. Any other dollar sign is
left alone. A value stands inside TOML afterwards, so it may not contain what ends or changes a TOML string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from spiffe_core.errors import ConfigError

MAX_VALUE_CHARS: Final = 4096
_REFERENCE: Final = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


def expanded(text: str, environ: Mapping[str, str], source: str) -> str:
    """The text with its variables filled in; `source` is how messages call it.

    Raises:
        ConfigError: a variable is not set, or its value cannot stand in a settings file. The value is not shown.
    """
    return "\n".join(
        line if line.lstrip().startswith("#") else _line(line, environ, f"{source}: line {number}")
        for number, line in enumerate(text.split("\n"), 1)
    )


def _line(line: str, environ: Mapping[str, str], where: str) -> str:
    def value_of(reference: re.Match[str]) -> str:
        name = reference[1] or reference[2]
        value = environ.get(name)
        if value is None:
            raise ConfigError(f"{where}: the environment variable {name} is not set; set it", field="config")
        if len(value) > MAX_VALUE_CHARS or not value.isprintable() or any(mark in value for mark in "\"'\\"):
            raise ConfigError(
                f"{where}: the environment variable {name} cannot stand in a settings file: at most {MAX_VALUE_CHARS} "
                "printable characters, without quotation marks and backslashes",
                field="config",
            )
        return value

    return _REFERENCE.sub(value_of, line)
