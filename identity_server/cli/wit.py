"""`identity-server wit`: WIT-SVIDs for what is not a workload. Works where the server has `[wit] enabled = true`."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import click
from cryptography.hazmat.primitives.asymmetric import ec

from identity_server.cli.filters import spiffe_id
from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.crypto.jwk import key_to_jwk
from spiffe_core.crypto.keys import KeyKind, PrivateKey, generate, spki_der
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.pem_files import PRIVATE, output_directory, write_files
from spiffe_core.terminal.printing import as_json, output_flag, print_json, timestamp
from spiffe_core.terminal.values import WHOLE_SECONDS
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2

SVID: Final = svid_pb2.DESCRIPTOR.services_by_name["SVID"]


@click.group("wit", cls=Group)
def group() -> None:
    """WIT-SVIDs without a workload."""


@command("mint", example="identity-server wit mint --spiffe-id spiffe://example.org/ci --write ./ci")
@flag("--spiffe-id", "spiffeID", required=True, help="The identity.")
@flag("--ttl", type=WHOLE_SECONDS, default=0, help="Its life; the server's default when it is left out.")
@flag(
    "--key-type",
    "keyType",
    type=click.Choice([kind.value for kind in KeyKind if not kind.post_quantum]),
    default="ec-p256",
    show_default=True,
    help="The kind of key that is made for the workload.",
)
@flag(
    "--signing-algorithm",
    "signingAlgorithm",
    default="ES256",
    show_default=True,
    help="The algorithm of the workload's proofs; it has to fit the key.",
)
@flag("--write", metavar="DIR", help="Write `token` and `key` (both 0600) into this existing directory.")
@server_flags
@output_flag
def mint(*, socket_path: str | None, instance: str | None, output: str, ttl: int, **given: Any) -> None:
    """Make a key and have a WIT-SVID signed for it.

    The key is made here and never leaves. The token proves nothing without a proof made with it.
    """
    directory = output_directory(given["write"]) if given["write"] else None
    key = generate(KeyKind(given["key_type"]))
    request = svid_pb2.MintWITSVIDRequest(
        id=spiffe_id(given["spiffe_id"], "--spiffe-id"),
        public_key=spki_der(key.public_key()),
        ttl=ttl,
        signing_algorithm=given["signing_algorithm"],
    )
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SVID)("MintWITSVID", request)
    if ttl and answer.svid.expires_at - answer.svid.issued_at < ttl:
        end = timestamp(answer.svid.expires_at)
        click.echo(f"WIT-SVID lifetime was capped shorter than specified ttl; expires {end}", err=True)
    secret = json.dumps(_private_jwk(key), separators=(",", ":"))
    if directory is not None:
        texts = {"token": (answer.svid.token, PRIVATE), "key": (secret, PRIVATE)}
        token_path, key_path = write_files(directory, texts)
        if output == "json":
            print_json({"written": [str(token_path), str(key_path)]})
            return
        click.echo(f"WIT-SVID written to {token_path}")
        click.echo(f"Private key written to {key_path}")
    elif output == "json":
        print_json({"private_key": secret, "svid": as_json(answer.svid)})
    else:
        click.echo(answer.svid.token)
        click.echo(secret)


def _private_jwk(key: PrivateKey) -> dict[str, str]:
    """The key as a JSON Web Key (RFC 7518 sections 6.2.2 and 6.3.2), which is how SPIRE's command hands it out."""
    jwk = key_to_jwk(key.public_key())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {**jwk, "d": _number(key.private_numbers().private_value, (key.key_size + 7) // 8)}
    numbers = key.private_numbers()
    members = {
        "d": numbers.d,
        "p": numbers.p,
        "q": numbers.q,
        "dp": numbers.dmp1,
        "dq": numbers.dmq1,
        "qi": numbers.iqmp,
    }
    return {**jwk, **{name: _number(value, (value.bit_length() + 7) // 8) for name, value in members.items()}}


def _number(value: int, size: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(size)).rstrip(b"=").decode()


group.add_command(mint)
