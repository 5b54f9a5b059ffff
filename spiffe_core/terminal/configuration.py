"""What `run` and `validate` of both daemons have in common: the file, the flags over it, and the resolved tree."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, flag

_LEVELS: Final = {"warn": "warning", "panic": "error", "fatal": "error", "trace": "debug"}


def config_flags(default: str) -> Callable[[F], F]:
    """The flags every daemon has: its file, and SPIRE's names for the settings that are often overridden."""

    def decorate(function: F) -> F:
        flags = [
            flag(
                "--expand-env",
                "expandEnv",
                switch=True,
                help="Fill in environment variables in the file: $NAME and ${NAME}.",
            ),
            flag("--trust-domain", "trustDomain", help="Overrides trust_domain."),
            flag(
                "--log-source-location",
                "logSourceLocation",
                switch=True,
                help="Overrides log_source_location: lines of the log say where in the program they were written.",
            ),
            flag("--log-format", "logFormat", help="Overrides log_format: json or text."),
            flag("--log-file", "logFile", help="Overrides log_file."),
            flag("--log-level", "logLevel", help="Overrides log_level: debug, info, warning or error."),
            flag("--data-dir", "dataDir", help="Overrides data_dir."),
            flag("--socket-path", "socketPath", help="Overrides socket_path."),
            flag("--config", default=default, show_default=True, metavar="FILE", help="The TOML configuration."),
        ]
        for one in flags:
            function = one(function)
        return function

    return decorate


def config_file(path: str, default: str, program: str) -> Path:
    """The configuration file, which must exist.

    Raises:
        Failure: it does not.
    """
    if path == default and not Path(path).exists():
        raise Failure(f"no configuration was given, and there is none at {default}", f"{program} run --config FILE")
    return Path(path)


def overrides(given: Mapping[str, object | None], names: Mapping[str, str]) -> dict[str, object]:
    """Flags as settings: `names` maps flags to keys; what was not given is left out, paths become absolute."""
    found: dict[str, object] = {}
    for name, key in names.items():
        value = given[name]
        if value is None:
            continue
        if key in {"socket_path", "data_dir"}:
            value = os.path.abspath(str(value).removeprefix("unix://"))  # noqa: PTH100  # links in it are left alone
        elif key == "log_level":
            level = str(value).lower()
            value = _LEVELS.get(level, level)
        found[key] = value
    return found


def environment(given: Mapping[str, object | None]) -> Mapping[str, str] | None:
    """What fills in the file's variables; None unless that was asked for."""
    return os.environ if given["expand_env"] else None


def print_settings(tree: Mapping[str, Any], source: Path, warnings: tuple[str, ...], output: str) -> None:
    """The resolved tree, as TOML that could stand in a file, or as JSON."""
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if output == "json":
        click.echo(json.dumps(tree, separators=(",", ":"), ensure_ascii=False))
        return
    click.echo(f"# {source} is valid. With every default filled in it reads:")
    click.echo("\n".join(_toml(tree, "")))


def _toml(tree: Mapping[str, Any], prefix: str) -> list[str]:
    lines = [f"{key} = {_value(value)}" for key, value in tree.items() if not _is_table(value) and value is not None]
    for key, value in tree.items():
        if _is_table(value):
            lines += ["", f"[{prefix}{key}]", *_toml(value, f"{prefix}{key}.")]
    return lines


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _value(value: object) -> str:
    """A scalar or an array; JSON's spelling of them is TOML's as well."""
    return json.dumps(value, ensure_ascii=False)
