"""`identity-server wit`: WIT-SVIDs for what is not a workload. Works where the server has `[wit] enabled = true`."""

from __future__ import annotations

import base64
from typing import Any, Final

import click

from identity_server.cli.filters import spiffe_id
from identity_server.cli.server import Service, server_channel, server_flags
from identity_server.cli.token_file import token_target
from spiffe_core.crypto.keys import KeyKind, generate, spki_der, to_pkcs8
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.pem_files import PRIVATE, pem, write_files
from spiffe_core.terminal.printing import output_flag, print_json
from spiffe_core.terminal.values import WHOLE_SECONDS
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2

SVID: Final = svid_pb2.DESCRIPTOR.services_by_name["SVID"]


@click.group("wit", cls=Group)
def group() -> None:
    """WIT-SVIDs without a workload."""


@command("mint", example="identity-server wit mint --spiffe-id spiffe://example.org/ci --write ./ci.wit")
@flag("--spiffe-id", "spiffeID", required=True, help="The identity.")
@flag("--ttl", type=WHOLE_SECONDS, default=0, help="Its life; the server's default when it is left out.")
@flag(
    "--key-type",
    "keyType",
    type=click.Choice([kind.value for kind in KeyKind]),
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
@flag("--write", metavar="FILE", help="Write the token into this file and its key into FILE.key (both 0600).")
@server_flags
@output_flag
def mint(*, socket_path: str | None, instance: str | None, output: str, ttl: int, **given: Any) -> None:
    """Make a key and have a WIT-SVID signed for it.

    The key is made here and never leaves. The token proves nothing without a proof made with it.
    """
    target = token_target(given["write"]) if given["write"] else None
    key = generate(KeyKind(given["key_type"]))
    request = svid_pb2.MintWITSVIDRequest(
        id=spiffe_id(given["spiffe_id"], "--spiffe-id"),
        public_key=spki_der(key.public_key()),
        ttl=ttl,
        signing_algorithm=given["signing_algorithm"],
    )
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SVID)("MintWITSVID", request)
    secret = to_pkcs8(key).reveal()
    if target is not None:
        directory, name = target
        texts = {name: (answer.svid.token, PRIVATE), f"{name}.key": (pem("PRIVATE KEY", secret), PRIVATE)}
        token_path, key_path = write_files(directory, texts)
        if output == "json":
            print_json({"written": [str(token_path), str(key_path)]})
            return
        click.echo(f"WIT-SVID written to {token_path}")
        click.echo(f"Private key written to {key_path}")
    elif output == "json":
        print_json({"wit_svid": answer.svid.token, "private_key": base64.b64encode(secret).decode()})
    else:
        click.echo(f"WIT-SVID:\n{answer.svid.token}\n\nPrivate key:\n{pem('PRIVATE KEY', secret)}", nl=False)


group.add_command(mint)
