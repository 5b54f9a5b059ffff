"""Trust bundles in files and on screen: PEM certificates, or SPIFFE's bundle document."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from spiffe_core.bundle_document import MAX_DOCUMENT_BYTES, dump_bundle, load_bundle, load_bundle_pem
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import flag
from spiffe_core.terminal.pem_files import certificates_pem
from spiffe_core.terminal.printing import clean
from spiffe_core.wire._gen.spire.api.types import bundle_pb2
from spiffe_core.wire.convert_bundle import bundle_from_proto, bundle_to_proto

FORMATS: Final = ("pem", "spiffe")


def format_flag(name: str = "--format", spire: str = "") -> Callable[[Any], Any]:
    """The flag for the form of a bundle."""
    return flag(
        name,
        spire,
        type=click.Choice(FORMATS, case_sensitive=False),
        default="pem",
        show_default=True,
        help="Certificates as PEM, or a SPIFFE bundle document.",
    )


def read_file(path: str, what: str) -> bytes:
    """The bytes of a file, or of standard input for "" and "-"."""
    try:
        if path in {"", "-"}:
            data = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", f"name a readable file with {what}") from None
    if len(data) > MAX_DOCUMENT_BYTES:
        raise Failure(f"{path or 'standard input'}: has more than {MAX_DOCUMENT_BYTES} bytes")
    return data


def parse_bundle(data: bytes, form: str, trust_domain: str, field: str) -> bundle_pb2.Bundle:
    """The bundle of `trust_domain` in a file; what is odd about it goes to standard error."""
    name = TrustDomain.parse(trust_domain, field=field)
    loaded = load_bundle_pem(data, name) if form.lower() == "pem" else load_bundle(data, name)
    for warning in loaded.warnings:
        click.echo(f"Warning: {clean(warning)}", err=True)
    return bundle_to_proto(loaded.bundle)


def bundle_text(bundle: bundle_pb2.Bundle, form: str) -> str:
    """A bundle for people, ending in a line feed."""
    if form.lower() == "pem":
        return certificates_pem([authority.asn1 for authority in bundle.x509_authorities])
    document = json.loads(dump_bundle(bundle_from_proto(bundle)))
    if not bundle.sequence_number:
        del document["spiffe_sequence"]  # the message's zero is "not known", as for SPIRE's command line
    return json.dumps(document, indent=4) + "\n"
