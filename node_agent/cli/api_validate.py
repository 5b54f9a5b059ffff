"""`node-agent api validate x509|wit`: SVIDs of others, verified here with the bundles the agent shows us."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from node_agent.cli.endpoint import AGENT, endpoint, endpoint_flags
from node_agent.cli.streams import SECURITY_HEADER, SERVICE
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.bundle_document import load_token_keys
from spiffe_core.clock import SystemClock
from spiffe_core.errors import IdentityError
from spiffe_core.runtime.pem_material import read_pem_certificates
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.terminal.connection import connect
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.pem_files import split_der
from spiffe_core.terminal.printing import clean, output_flag
from spiffe_core.terminal.values import SECONDS
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.services import Stub
from spiffe_core.wit_verify import verify_wit_svid
from spiffe_core.x509_verify import verify_x509_svid

MAX_TOKEN_BYTES: Final = 64 * 1024
_timeout = flag("--timeout", type=SECONDS, default="5s", show_default=True, help="How long to wait for an answer.")


def _bundles(
    where: tuple[str | None, str | None],
    timeout: float,
    ask: Callable[[Any, float], Iterator[Any]],
    read: Callable[[TrustDomain, Any], TrustBundle],
) -> dict[TrustDomain, TrustBundle]:
    """The first message of a stream of bundles, by trust domain."""
    with connect(endpoint(*where, os.environ), AGENT) as channel:
        stream = ask(Stub(channel, SERVICE), timeout)
        answer = next(stream, None)
        stream.cancel()  # type: ignore[attr-defined]  # a gRPC call is an iterator that can be ended
    if answer is None:
        raise Failure("the agent ended the stream of bundles without an answer", "look at the agent's log")
    named = {TrustDomain.parse(name): bundle for name, bundle in answer.bundles.items()}
    return {trust_domain: read(trust_domain, bundle) for trust_domain, bundle in named.items()}


def _refused(error: IdentityError, advice: str) -> Failure:
    return Failure(f"SVID is not valid: {clean(error.public)}", advice)


def _show(output: str, spiffe_id: str, ends: datetime, claims: Mapping[str, Any] | None = None) -> None:
    found = {"spiffe_id": spiffe_id, "expires_at": int(ends.timestamp())}
    if output == "json":
        click.echo(json.dumps(found if claims is None else {**found, "claims": dict(claims)}, indent=2))
        return
    click.echo("SVID is valid.")
    click.echo(f"SPIFFE ID : {clean(spiffe_id)}")
    click.echo(f"Valid till: {ends:%Y-%m-%d %H:%M:%S} UTC")
    if claims is not None:
        click.echo(f"Claims    : {json.dumps(claims, separators=(',', ':'), sort_keys=True, default=str)}")


@command("x509", example="node-agent api validate x509 --svid peer.pem", short_help="Validate an X.509-SVID")
@flag("--svid", required=True, metavar="FILE", help="The certificate chain in PEM, leaf first.")
@flag("--purpose", type=click.Choice(["client", "server"]), help="What the leaf must be good for; neither: either.")
@_timeout
@endpoint_flags
@output_flag
def validate_x509(
    *, socket_path: str | None, instance: str | None, output: str, timeout: float, svid: str, purpose: Any
) -> None:
    """Verify a certificate chain with the bundles the agent shows to this process.

    Whether the other side has the key is not looked at: that takes a handshake.
    """

    def ask(stub: Any, seconds: float) -> Any:
        return stub.FetchX509Bundles(workload_pb2.X509BundlesRequest(), metadata=SECURITY_HEADER, timeout=seconds)

    def read(trust_domain: TrustDomain, der: bytes) -> TrustBundle:
        roots = tuple(X509Authority(one) for one in split_der(der, field="bundles"))
        return TrustBundle(trust_domain, roots)

    chain = read_pem_certificates(Path(svid), field="svid")
    bundles = _bundles((socket_path, instance), timeout, ask, read)
    try:
        verified = verify_x509_svid(chain, bundles.get, now=SystemClock().now(), purpose=purpose)
    except IdentityError as error:
        raise _refused(
            error, "compare its trust domain with those of `api watch x509`, and its dates with now"
        ) from None
    _show(output, str(verified.spiffe_id), verified.not_after)


@command(
    "wit",
    example="node-agent api validate wit --audience https://api.example.org < token-and-proof.txt",
    short_help="Validate a WIT-SVID with its proof",
)
@flag("--audience", required=True, help="The name of whoever validates: the proof must be for it.")
@flag("--svid", help="The token; without it token and proof are two lines of standard input.")
@flag("--proof", help="The proof of possession, made with the token's key.")
@_timeout
@endpoint_flags
@output_flag
def validate_wit(*, socket_path: str | None, instance: str | None, output: str, timeout: float, **given: Any) -> None:
    """Verify a WIT-SVID together with its proof of possession: by itself it proves nothing."""

    def ask(stub: Any, seconds: float) -> Any:
        return stub.FetchWITBundles(workload_pb2.WITBundlesRequest(), metadata=SECURITY_HEADER, timeout=seconds)

    def read(trust_domain: TrustDomain, text: str) -> TrustBundle:
        loaded = load_token_keys(text.encode(), trust_domain, "wit-svid")
        return TrustBundle(trust_domain, wit_authorities=loaded.bundle.wit_authorities)

    token, proof = _token_and_proof(given["svid"], given["proof"])
    bundles = _bundles((socket_path, instance), timeout, ask, read)
    try:
        verified = verify_wit_svid(token, proof, bundles.get, audience=given["audience"], now=SystemClock().now())
    except IdentityError as error:
        raise _refused(error, "let its holder make a new proof for this audience") from None
    _show(output, str(verified.spiffe_id), datetime.fromtimestamp(verified.expires_at, UTC), verified.claims)


def _token_and_proof(svid: str | None, proof: str | None) -> tuple[str, str]:
    if svid is not None and proof is not None:
        return svid, proof
    if svid is not None or proof is not None:
        raise Failure(
            "a WIT-SVID is validated with its proof", "give both --svid and --proof, or both on standard input"
        )
    lines = sys.stdin.read(2 * MAX_TOKEN_BYTES).split()
    if len(lines) != 2:  # noqa: PLR2004  # a token and a proof
        raise Failure("standard input must hold two lines: the token, then its proof", "or use --svid and --proof")
    return lines[0], lines[1]
