"""`identity-server oidc`: the keys of JWT-SVIDs where OpenID Connect verifiers look for them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from identity_server.cli.server import admin_socket, server_flags
from spiffe_core.runtime.collector import all_of_it_stays
from spiffe_core.runtime.openssl import groups_chosen
from spiffe_core.terminal.configuration import config_file, print_settings
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import output_flag

if TYPE_CHECKING:
    from identity_server.settings_oidc import OidcSettings

DEFAULT_CONFIG: Final = "/etc/muniment/oidc.toml"


@click.group("oidc", cls=Group, default="run")
def group() -> None:
    """OpenID Connect discovery for JWT-SVIDs: `oidc --config FILE` serves it."""


@command("run", example="identity-server oidc run --config /etc/muniment/oidc.toml")
@flag("--config", default=DEFAULT_CONFIG, show_default=True, metavar="FILE", help="The TOML configuration.")
def run_command(*, config: str) -> None:
    """Serve the discovery document and the keys until SIGTERM or Ctrl-C.

    The keys come from a server's admin socket, an agent, or a file. A server can also do this itself: see `[oidc]`.
    """
    groups_chosen()
    with all_of_it_stays():
        settings = _load(config)
        from identity_server.oidc.standalone import run_and_exit

    run_and_exit(settings)


@command("validate", example="identity-server oidc validate --config /etc/muniment/oidc.toml")
@flag("--config", default=DEFAULT_CONFIG, show_default=True, metavar="FILE", help="The TOML configuration.")
@output_flag
def validate_command(*, config: str, output: str) -> None:
    """Check a configuration and print what it means, defaults included. Nothing is started or opened."""
    from spiffe_core.runtime.settings import resolved

    settings = _load(config)
    print_settings(resolved(settings), Path(config), settings.warnings(), output)


def _load(config: str) -> OidcSettings:
    from identity_server.settings_oidc import load

    return load(config_file(config, DEFAULT_CONFIG, "identity-server oidc"))


@command(
    "write",
    example="identity-server oidc write --issuer https://oidc.example.org /srv/oidc\n"
    "identity-server oidc write --config /etc/muniment/oidc.toml --watch /srv/oidc",
)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@flag("--watch", switch=True, help="Go on, and write whenever the keys change, until SIGTERM or Ctrl-C.")
@flag("--jwks-uri", help="Where verifiers will find the file `keys`, if it is not below the issuer.")
@flag("--issuer", metavar="URL", help="The issuer, exactly as `jwt.issuer` of the server has it.")
@flag("--config", metavar="FILE", help="Names and source from the file of a provider that stands alone.")
@server_flags
def write(
    directory: Path,
    *,
    config: str | None,
    issuer: str | None,
    jwks_uri: str | None,
    watch: bool | None,
    socket_path: str | None,
    instance: str | None,
) -> None:
    """Write the discovery document and the keys into DIR, for a bucket or any web server.

    DIR stands for the issuer's URL. The keys come from the server's admin socket, or from where --config says.
    """
    settings = _settings(config, issuer, jwks_uri, socket_path, instance)
    if watch:
        from spiffe_core.runtime.logs import setup_logging

        output = setup_logging(settings.log_level, settings.log_file or None, style="text")
        try:
            asyncio.run(_watch(settings, directory.absolute()))
        finally:
            output.close()
    else:
        from identity_server.oidc.writing import write_once

        asyncio.run(write_once(settings, directory.absolute(), _tell))


def _settings(
    config: str | None, issuer: str | None, jwks_uri: str | None, socket_path: str | None, instance: str | None
) -> OidcSettings:
    from identity_server.settings_oidc import from_mapping, load

    if config is not None:
        if socket_path or instance:
            raise Failure("--config names the source of the keys", "leave --socket-path and --instance out")
        return load(config, {"jwt_issuer": issuer, "jwks_uri": jwks_uri})
    if not issuer:
        raise Failure("whose documents shall be written?", "give --issuer URL, or --config FILE")
    names: dict[str, Any] = {"jwt_issuer": issuer, **({"jwks_uri": jwks_uri} if jwks_uri else {})}
    address = admin_socket(socket_path, instance, os.environ)
    return from_mapping({**names, "server_api": {"address": address}}, source="command line")


async def _watch(settings: OidcSettings, directory: Path) -> None:
    from identity_server.oidc.writing import write_on_change
    from spiffe_core.clock import SystemClock

    running = asyncio.ensure_future(write_on_change(settings, directory, SystemClock(), _tell))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with suppress(asyncio.CancelledError):
        await running


def _tell(written: Sequence[Path]) -> None:
    for path in written:
        click.echo(f"wrote {path}")
    if not written:
        click.echo("the files are up to date")


for _command in (run_command, validate_command, write):
    group.add_command(_command)
