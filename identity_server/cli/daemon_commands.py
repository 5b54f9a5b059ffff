"""`identity-server run`, `validate` and `healthcheck`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from identity_server.cli.server import SERVER, admin_socket, server_flags
from spiffe_core.runtime.collector import all_of_it_stays
from spiffe_core.runtime.openssl import groups_chosen
from spiffe_core.terminal.configuration import config_file, config_flags, environment, overrides, print_settings
from spiffe_core.terminal.flags import F, command, flag
from spiffe_core.terminal.health import check_health
from spiffe_core.terminal.printing import output_flag

DEFAULT_CONFIG: Final = "/etc/muniment/server.toml"
_OVERRIDES: Final = {
    "bind_address": "bind_address",
    "server_port": "bind_port",
    "socket_path": "socket_path",
    "data_dir": "data_dir",
    "log_level": "log_level",
    "log_file": "log_file",
    "log_format": "log_format",
    "log_source_location": "log_source_location",
    "trust_domain": "trust_domain",
}


def settings_flags(function: F) -> F:
    """The flags of `run` and `validate`."""
    flags = [
        flag("--server-port", "serverPort", type=int, help="Overrides bind_port, the port for agents."),
        flag("--bind-address", "bindAddress", help="Overrides bind_address, the address for agents."),
        config_flags(DEFAULT_CONFIG),
    ]
    for one in flags:
        function = one(function)
    return function


def _load(config: str, given: Mapping[str, Any]) -> tuple[Path, Any]:
    from identity_server.settings import load

    path = config_file(config, DEFAULT_CONFIG, "identity-server")
    return path, load(path, overrides(given, _OVERRIDES), environment(given))


@command("run", example="identity-server run --config /etc/muniment/server.toml")
@flag(
    "--reset-keys",
    switch=True,
    help="Give up signing keys that are lost, and begin with a new authority. What the old one signed stays valid.",
)
@settings_flags
def run_command(*, config: str, reset_keys: bool | None, **given: Any) -> None:
    """Run the server until SIGTERM or Ctrl-C."""
    groups_chosen()
    with all_of_it_stays():
        _, settings = _load(config, given)
        from identity_server.daemon import run_and_exit

    run_and_exit(settings, reset_keys=bool(reset_keys))


@command("validate", example="identity-server validate --config /etc/muniment/server.toml")
@settings_flags
@output_flag
def validate_command(*, config: str, output: str, **given: Any) -> None:
    """Check a configuration and print what it means, defaults included. Nothing is started or opened."""
    path, settings = _load(config, given)
    from attestors.registry import NODE_VERIFIERS, check_tables
    from spiffe_core.runtime.settings import resolved

    check_tables(settings.attestors, NODE_VERIFIERS)
    print_settings(resolved(settings), path, settings.warnings(), output)


@command("healthcheck", example="identity-server healthcheck && echo well")
@flag("--shallow", switch=True, help="Accepted for SPIRE's sake; the check is the same.", hidden=True)
@flag("--verbose", switch=True, help="Say what is being done.")
@server_flags
def healthcheck_command(
    *, socket_path: str | None, instance: str | None, shallow: bool | None, verbose: bool | None
) -> int:
    """Ask the running server whether it is well: exit code 0 when it is."""
    del shallow
    return check_health(admin_socket(socket_path, instance, os.environ), SERVER, verbose=bool(verbose))
