"""The command `identity-server`.

    daemon_commands.py   run, validate, healthcheck
    entry.py             entry show, count, delete      entry_edit.py   entry create, update
    entry_lint.py        entry lint
    agent.py             agent list, count, show, ban, evict   agent_purge.py   agent purge
    tokens.py            token generate
    bundle.py            bundle show, count         bundle_edit.py   bundle list, set, delete
    federation.py        federation create, update, list, show, delete, refresh
    logger.py debug.py   logger get, set, reset; debug getinfo
    x509.py jwt.py wit.py        x509 mint, jwt mint, wit mint
    oidc.py              oidc run, validate, write
    cloud.py             cloud check
    localauthority.py    localauthority x509|jwt|wit show, prepare, activate, taint, revoke
    upstreamauthority.py         upstreamauthority taint, revoke

Modules are imported when their command is called; `entry show` loads neither the database nor the web framework.
Flags and output follow SPIRE's `spire-server`, so that scripts written for it go on working.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from spiffe_core.runtime.openssl import choose_groups
from spiffe_core.terminal.failures import run
from spiffe_core.terminal.groups import Group

_HERE = "identity_server.cli"


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # with the parser of e-mail that it brings, a quarter of `--help`

        click.echo(version("muniment"))
        ctx.exit()


@click.group(
    "identity-server",
    cls=Group,
    lazy={
        "run": (f"{_HERE}.daemon_commands:run_command", "Run the server until it is told to stop"),
        "validate": (f"{_HERE}.daemon_commands:validate_command", "Check a configuration and print what it means"),
        "healthcheck": (f"{_HERE}.daemon_commands:healthcheck_command", "Ask the running server whether it is well"),
        "entry": (f"{_HERE}.entry:group", "Registration entries: who may have which SPIFFE ID"),
        "agent": (f"{_HERE}.agent:group", "Attested agents: list, inspect, ban, evict"),
        "token": (f"{_HERE}.tokens:group", "Join tokens, which admit a node once"),
        "bundle": (f"{_HERE}.bundle:group", "The trust bundle that SVIDs are verified with"),
        "federation": (f"{_HERE}.federation:group", "Trust domains whose bundles are fetched"),
        "explain": (f"{_HERE}.explain:explain", "Tell why an agent's workload gets its identities, or none"),
        "logger": (f"{_HERE}.logger:group", "The level of the server's log"),
        "debug": (f"{_HERE}.debug:group", "What the server is and what it holds"),
        "x509": (f"{_HERE}.x509:group", "X.509-SVIDs without a workload"),
        "jwt": (f"{_HERE}.jwt:group", "JWT-SVIDs without a workload"),
        "wit": (f"{_HERE}.wit:group", "WIT-SVIDs without a workload"),
        "cloud": (f"{_HERE}.cloud:group", "Whether clouds and Vault will take our tokens, and what to tell them"),
        "oidc": (f"{_HERE}.oidc:group", "OpenID Connect discovery: the keys of JWT-SVIDs for clouds and others"),
        "localauthority": (f"{_HERE}.localauthority:group", "Signing authorities: show, rotate, taint, revoke"),
        "upstreamauthority": (f"{_HERE}.upstreamauthority:group", "Roots of the upstream authority: taint, revoke"),
    },
)
@click.option(
    "--version",
    "-version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def root() -> None:
    """The identity server: a SPIFFE certificate authority and registry."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with exit code 0 or 1."""
    if (sys.argv[1:] if arguments is None else arguments)[:1] == ["run"]:
        choose_groups()  # of the TLS endpoints; before anything imports ssl
    run(root, arguments, "identity-server")
