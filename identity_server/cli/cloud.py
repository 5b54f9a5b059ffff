"""`identity-server cloud check`: whether a cloud or Vault will take our JWT-SVIDs, and what to tell it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from identity_server.cli.entry import SERVICE as ENTRY
from identity_server.cli.entry import all_entries
from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import clean, count_line, output_flag, print_json
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as types_pb2

BUNDLE: Final = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
VERIFIERS: Final = ("aws", "gcp", "azure", "vault")
_ALIASES = "/spire/server"


@click.group("cloud", cls=Group)
def group() -> None:
    """Clouds and products that take JWT-SVIDs by OpenID Connect."""


@command(
    "check",
    example="identity-server cloud check aws --config /etc/muniment/server.toml --fetch\n"
    "identity-server cloud check gcp --issuer https://oidc.example.org --spiffe-id spiffe://example.org/web -output "
    "json",
)
@click.argument("verifier", metavar="aws|gcp|azure|vault", type=click.Choice(VERIFIERS))
@flag("--fetch", switch=True, help="Fetch the issuer's documents too, as the verifier would.")
@flag("--ca-file", metavar="FILE", help="PEM: who certified the issuer's host, if that is no public authority.")
@flag("--spiffe-id", "spiffeID", multiple=True, help="Only entries for this SPIFFE ID. May be repeated.")
@flag(
    "--audience", multiple=True, help="An audience of the tokens; default: the verifier's usual one. May be repeated."
)
@flag("--issuer", metavar="URL", help="The issuer, exactly as `jwt.issuer` of the server has it.")
@flag("--config", metavar="FILE", help="The server's configuration file, from which `jwt.issuer` is read.")
@server_flags
@output_flag
def check(
    *,
    verifier: str,
    socket_path: str | None,
    instance: str | None,
    output: str,
    config: str | None,
    issuer: str | None,
    audience: Sequence[str],
    spiffe_id: Sequence[str],
    fetch: bool | None,
    ca_file: str | None,
) -> int:
    """Look at entries and keys against what a verifier takes, and print what to tell it.

    Exit code 1 if something will fail. The verifier itself is not asked.
    """
    from identity_server.domain.cloud_check import Presented, Severity, findings
    from identity_server.domain.verifier_rules import VERIFIERS as RULES
    from spiffe_core.wire.convert_bundle import bundle_from_proto

    rules = RULES[verifier]
    with server_channel(socket_path, instance) as channel:
        bundle = bundle_from_proto(Service(channel, BUNDLE)("GetBundle", bundle_pb2.GetBundleRequest()))
        entries = all_entries(Service(channel, ENTRY), entry_pb2.ListEntriesRequest.Filter())
    subjects = _subjects(entries, spiffe_id)
    audiences = tuple(audience) or ((rules.audience,) if rules.audience else ())
    presented = Presented(_issuer(config, issuer), bundle, subjects, audiences, _authorities(ca_file))
    found = findings(rules, presented)
    if fetch and presented.issuer and not any(one.code == "CLOUD-ISSUER-URL" for one in found):
        from identity_server.cli.cloud_fetch import fetched

        found = (*found, *fetched(rules, presented, ca_file=ca_file))
    told = _commands(verifier, presented, found, ca_file or "")
    if output == "json":
        print_json(
            {
                "verifier": verifier,
                "issuer": presented.issuer,
                "subjects": [one.spiffe_id for one in subjects],
                "findings": [
                    {
                        "code": one.code,
                        "severity": one.severity.value,
                        "text": one.text,
                        "fix": one.fix,
                        "source": one.source,
                    }
                    for one in found
                ],
                "configuration": list(told),
            }
        )
    else:
        _print(rules.title, len(subjects), found, told)
    return 1 if any(one.severity is Severity.ERROR for one in found) else 0


def _issuer(config: str | None, issuer: str | None) -> str:
    if issuer is not None and config is not None:
        raise Failure("--issuer and --config both name the issuer", "give one of them")
    if config is None:
        return issuer or ""
    from identity_server.settings import load

    return load(config).jwt.issuer


def _authorities(ca_file: str | None) -> tuple[bytes, ...]:
    from spiffe_core.runtime.pem_material import read_pem_certificates

    return () if ca_file is None else tuple(read_pem_certificates(Path(ca_file), field="--ca-file"))


def _subjects(entries: Sequence[types_pb2.Entry], wanted: Sequence[str]) -> tuple[Any, ...]:
    """The SPIFFE IDs of workloads, each once, with the longest life of their tokens."""
    from identity_server.domain.cloud_check import Subject

    lives: dict[str, int] = {}
    for entry in entries:
        name = f"spiffe://{entry.spiffe_id.trust_domain}{entry.spiffe_id.path}"
        if entry.parent_id.path != _ALIASES and (not wanted or name in wanted):
            lives[name] = max(lives.get(name, 0), entry.jwt_svid_ttl)
    missing = [name for name in wanted if name not in lives]
    if missing:
        raise Failure(f"there is no entry for {missing[0]}", "see `identity-server entry show`")
    return tuple(Subject(name, lives[name]) for name in sorted(lives))


def _commands(verifier: str, presented: Any, found: Sequence[Any], ca_file: str) -> tuple[str, ...]:
    """What to run; nothing while there is no issuer to tell of. SPIFFE IDs that are too long are left out."""
    from identity_server.domain.cloud_configuration import commands
    from identity_server.domain.verifier_rules import VERIFIERS as RULES
    from spiffe_core.crypto.jose import algorithm_of

    if any(one.code in {"CLOUD-ISSUER-UNKNOWN", "CLOUD-ISSUER-URL"} for one in found):
        return ()
    limit = RULES[verifier].subject
    subjects = [one.spiffe_id for one in presented.subjects if limit is None or len(one.spiffe_id) <= limit.longest]
    algorithms = sorted({algorithm_of(one.key) for one in presented.bundle.jwt_authorities})
    return commands(
        verifier,
        presented.issuer,
        subjects,
        presented.audiences,
        algorithms,
        authorities=presented.authorities,
        ca_file=os.path.abspath(ca_file) if ca_file else "",  # noqa: PTH100  # links in it are left alone
    )


def _print(title: str, subjects: int, found: Sequence[Any], told: Sequence[str]) -> None:
    from identity_server.domain.cloud_configuration import MOST_SUBJECTS

    click.echo(f"{title}: {count_line(subjects, 'SPIFFE ID', 'SPIFFE IDs')} looked at")
    if not found:
        click.echo("Nothing found that stands in the way.")
    for one in found:
        click.echo(f"\n{one.severity.value}  {one.code}\n  {clean(one.text)}\n  fix: {clean(one.fix)}")
        if one.source:
            click.echo(f"  says who: {one.source}")
    if told:
        some = f" (the first {MOST_SUBJECTS} SPIFFE IDs; choose with --spiffe-id)" if subjects > MOST_SUBJECTS else ""
        click.echo(f"\nTo be run{some}:\n")
        for one in told:
            click.echo(one)


group.add_command(check)
