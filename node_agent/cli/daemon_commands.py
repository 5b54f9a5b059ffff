"""`node-agent run`, `validate` and `healthcheck`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from node_agent.cli.endpoint import AGENT, endpoint, endpoint_flags
from spiffe_core.runtime.collector import all_of_it_stays
from spiffe_core.terminal.configuration import config_file, config_flags, environment, overrides, print_settings
from spiffe_core.terminal.flags import F, command, flag
from spiffe_core.terminal.health import check_health
from spiffe_core.terminal.printing import output_flag

DEFAULT_CONFIG: Final = "/etc/muniment/agent.toml"
_OVERRIDES: Final = {
    "server_address": "server_address",
    "server_port": "server_port",
    "trust_bundle": "trust_bundle_path",
    "trust_bundle_url": "trust_bundle_url",
    "trust_bundle_format": "trust_bundle_format",
    "allow_unauthenticated_verifiers": "allow_unauthenticated_verifiers",
    "disable_sds_api": "sds.disabled",
    "disable_workload_api": "workload_api.disabled",
    "log_format": "log_format",
    "insecure_bootstrap": "insecure_bootstrap",
    "rebootstrap_mode": "rebootstrap_mode",
    "rebootstrap_delay": "rebootstrap_delay",
    "join_token": "join_token",
    "join_token_file": "join_token_file",
    "socket_path": "socket_path",
    "data_dir": "data_dir",
    "log_level": "log_level",
    "log_file": "log_file",
    "log_source_location": "log_source_location",
    "trust_domain": "trust_domain",
}


def settings_flags(function: F) -> F:
    """The flags of `run` and `validate`."""
    flags = [
        flag(
            "--insecure-bootstrap",
            "insecureBootstrap",
            switch=True,
            help="UNSAFE: believe whoever answers as the server on first contact. For throw-away tests.",
        ),
        flag("--rebootstrap-mode", "rebootstrapMode", help="Overrides rebootstrap_mode: never, auto or always."),
        flag("--rebootstrap-delay", "rebootstrapDelay", help="Overrides rebootstrap_delay."),
        flag(
            "--allow-unauthenticated-verifiers",
            "allowUnauthenticatedVerifiers",
            switch=True,
            help="Overrides allow_unauthenticated_verifiers.",
        ),
        flag("--disable-sds-api", "disableSDSAPI", switch=True, help="Overrides sds.disabled."),
        flag("--disable-workload-api", "disableWorkloadAPI", switch=True, help="Overrides workload_api.disabled."),
        flag("--trust-bundle-format", "trustBundleFormat", help="Overrides trust_bundle_format: pem or spiffe."),
        flag("--trust-bundle", "trustBundle", metavar="FILE", help="Overrides trust_bundle_path."),
        flag("--trust-bundle-url", "trustBundleUrl", metavar="URL", help="Overrides trust_bundle_url."),
        flag("--server-port", "serverPort", type=int, help="Overrides server_port."),
        flag("--server-address", "serverAddress", help="Overrides server_address; several with commas between them."),
        flag(
            "--join-token",
            "joinToken",
            help="A join token. Every user of this machine can read it in the process list: prefer --join-token-file.",
        ),
        flag("--join-token-file", "joinTokenFile", metavar="FILE", help="A file that holds a join token."),
        config_flags(DEFAULT_CONFIG),
    ]
    for one in flags:
        function = one(function)
    return function


def _load(config: str, given: Mapping[str, Any]) -> tuple[Path, Any]:
    from node_agent.settings import load

    path = config_file(config, DEFAULT_CONFIG, "node-agent")
    return path, load(path, overrides(given, _OVERRIDES), environment(given))


@command(
    "run",
    example="node-agent run --config /etc/muniment/agent.toml --join-token-file /run/secrets/join-token",
)
@settings_flags
def run_command(*, config: str, **given: Any) -> None:
    """Run the agent until SIGTERM or Ctrl-C."""
    with all_of_it_stays():
        _, settings = _load(config, given)
        from node_agent.daemon import run_and_exit

    run_and_exit(settings)


@command("validate", example="node-agent validate --config /etc/muniment/agent.toml")
@settings_flags
@output_flag
def validate_command(*, config: str, output: str, **given: Any) -> None:
    """Check a configuration and print what it means, defaults included. Nothing is started or opened."""
    path, settings = _load(config, given)
    from attestors.registry import NODE_PROVERS, WORKLOAD_ATTESTORS, check_tables
    from node_agent.file_sets.settings import load as load_files
    from spiffe_core.runtime.settings import resolved

    if settings.files_config is not None:
        load_files(settings.files_config)
    check_tables(settings.attestors, WORKLOAD_ATTESTORS, NODE_PROVERS)
    print_settings(resolved(settings), path, settings.warnings(), output)


@command("healthcheck", example="node-agent healthcheck && echo well")
@flag("--shallow", switch=True, help="Accepted for SPIRE's sake; the check is the same.", hidden=True)
@flag("--verbose", switch=True, help="Say what is being done.")
@endpoint_flags
def healthcheck_command(
    *, socket_path: str | None, instance: str | None, shallow: bool | None, verbose: bool | None
) -> int:
    """Ask the running agent whether it is well: exit code 0 when it is."""
    del shallow
    return check_health(endpoint(socket_path, instance, os.environ), AGENT, verbose=bool(verbose))
