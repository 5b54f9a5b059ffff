"""The issuer's documents, fetched as a verifier on the internet would: by name, over TLS that the system believes."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from identity_server.domain.cloud_check import Finding, Presented, Severity, documents_findings
from identity_server.domain.oidc_documents import IssuerUrl
from identity_server.domain.verifier_rules import VerifierRules
from spiffe_core.errors import InvalidRequest, Unavailable
from spiffe_core.runtime.https_client import ask_https

SECONDS = 10.0
"""For each document."""
MAX_BYTES = 1024 * 1024
_OK = 200


def fetched(rules: VerifierRules, presented: Presented, *, ca_file: str | None = None) -> tuple[Finding, ...]:
    """What is wrong with the documents. Without `ca_file` (PEM) the system's certificate store says whom to believe."""
    context = ssl.create_default_context(cafile=ca_file)
    issuer = IssuerUrl.parse(presented.issuer, field="issuer")
    try:
        configuration = _document(issuer.discovery_url, context)
        keys = _document(_keys_url(configuration), context)
    except Unavailable as error:
        return (
            Finding(
                "CLOUD-DOCUMENT-UNREACHABLE",
                Severity.ERROR,
                f"{error.public}; so asked from this machine, by the authorities that it believes",
                "see that the documents are served there"
                + (" with a certificate of a public authority" if rules.public else ", or name its CA with --ca-file"),
            ),
        )
    return documents_findings(presented, configuration, keys)


def _keys_url(configuration: Mapping[str, object]) -> str:
    place = configuration.get("jwks_uri")
    if not isinstance(place, str) or not place.startswith("https://"):
        raise Unavailable("the discovery document has no jwks_uri that begins with https://")
    return place


def _document(url: str, context: ssl.SSLContext) -> Mapping[str, object]:
    from attestors.json_objects import read_object

    parts = urlsplit(url)
    try:
        port = parts.port or 443
    except ValueError:
        raise Unavailable(f"{url} is no URL") from None
    answer = ask_https(
        "GET",
        parts.hostname or "",
        port,
        (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        tls=context,
        headers={},
        deadline=time.monotonic() + SECONDS,
        limit=MAX_BYTES,
    )
    if answer.status != _OK:
        raise Unavailable(f"{url} answers with status {answer.status}")
    try:
        return read_object(answer.body, MAX_BYTES, field=url, what="a JSON object")
    except InvalidRequest as error:
        raise Unavailable(error.public) from None
