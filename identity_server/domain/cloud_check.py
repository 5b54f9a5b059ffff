"""What a verifier outside will not take of our tokens and keys, found out before it says so itself.

    CLOUD-ISSUER-UNKNOWN       tokens have no `iss`, or nobody said which
    CLOUD-ISSUER-URL           the issuer is not an https URL as they want it
    CLOUD-ISSUER-PORT          it has a port
    CLOUD-ISSUER-LENGTH        it is too long
    CLOUD-ISSUER-PRIVATE       it names a host that is not on the internet
    CLOUD-AUDIENCE-LENGTH      an audience is too long
    CLOUD-AUDIENCE-COUNT       there are too many
    CLOUD-THUMBPRINT-COUNT     too many authorities of one's own
    CLOUD-KEY-NONE             there is no JWT key
    CLOUD-KEY-ALGORITHM        a key of a kind they do not take
    CLOUD-KEY-COUNT            too many keys at once
    CLOUD-BUNDLE-SIZE          the roots in PEM are too large
    CLOUD-SUBJECT-LENGTH       a SPIFFE ID is too long
    CLOUD-SUBJECT-COUNT        more SPIFFE IDs than one place takes
    CLOUD-TOKEN-LIFETIME       tokens live too long
    CLOUD-CERTIFICATE-PRIVATE  it takes none of them

`CLOUD-DOCUMENT-...` are what was fetched from the issuer (`documents_findings`). The codes are stable.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import rsa

from identity_server.domain.oidc_documents import IssuerUrl
from identity_server.domain.verifier_rules import Limit, VerifierRules
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import dump_bundle_pem
from spiffe_core.crypto.jose import algorithm_of
from spiffe_core.errors import InvalidRequest

MOST_NAMED = 5
"""Of what is alike, so many are named and the others counted."""
_PRIVATE_NAMES = (
    "localhost",
    ".localhost",
    ".local",
    ".internal",
    ".lan",
    ".home.arpa",
    ".test",
    ".invalid",
    ".example",
)


class Severity(enum.Enum):
    """How bad it is: an error will fail, a warning may, a note is good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a verifier will stumble over. `source` is who says so."""

    code: str
    severity: Severity
    text: str
    fix: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A SPIFFE ID that tokens are made for, and how long they live in seconds; 0 for the server's default."""

    spiffe_id: str
    token_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Presented:
    """What the verifier is to be told and shown."""

    issuer: str
    bundle: TrustBundle
    subjects: tuple[Subject, ...] = ()
    audiences: tuple[str, ...] = ()
    authorities: tuple[bytes, ...] = ()
    """The certificate authorities of one's own by which the issuer's host is certified, in DER."""


def findings(rules: VerifierRules, presented: Presented) -> tuple[Finding, ...]:
    """Everything that stands in the way, the issuer first."""
    return (
        *_issuer(rules, presented.issuer),
        *_certificates(rules, presented.authorities),
        *_keys(rules, presented.bundle),
        *_subjects(rules, presented.subjects),
        *_audiences(rules, presented.audiences),
    )


def documents_findings(
    presented: Presented, configuration: Mapping[str, object], keys: Mapping[str, object]
) -> tuple[Finding, ...]:
    """What is wrong with the two documents that stand below the issuer's URL."""
    return tuple(_documents(presented, configuration, keys))


def _issuer(rules: VerifierRules, issuer: str) -> Iterator[Finding]:
    if not issuer:
        yield Finding(
            "CLOUD-ISSUER-UNKNOWN",
            Severity.ERROR,
            "no issuer is known: tokens without `iss` belong to nobody a verifier could look up",
            "set jwt.issuer to an https URL, and give it here with --issuer or --config",
        )
        return
    try:
        url = IssuerUrl.parse(issuer, field="issuer")
    except InvalidRequest as error:
        yield Finding("CLOUD-ISSUER-URL", Severity.ERROR, error.public, "set jwt.issuer to such a URL")
        return
    if url.authority.port is not None and not rules.issuer_port:
        yield Finding(
            "CLOUD-ISSUER-PORT",
            Severity.ERROR,
            f"{rules.title} takes no port in the issuer, and {issuer} has {url.authority.port}",
            "serve the documents on port 443, and take the port out of jwt.issuer",
            rules.issuer_length.source if rules.issuer_length else "",
        )
    if (most := _above(len(issuer), rules.issuer_length)) is not None:
        yield Finding(
            "CLOUD-ISSUER-LENGTH",
            Severity.ERROR,
            f"the issuer has {len(issuer)} characters and {rules.title} takes {most.most}",
            "choose a shorter URL for jwt.issuer",
            most.source,
        )
    if rules.public and _is_private(url.authority.host):
        yield Finding(
            "CLOUD-ISSUER-PRIVATE",
            Severity.ERROR,
            f"{url.authority.host} is no name of the internet, and {rules.title} fetches the keys from there",
            "publish the documents where it can reach them: `identity-server oidc write` makes them for a bucket",
        )


def _certificates(rules: VerifierRules, authorities: Sequence[bytes]) -> Iterator[Finding]:
    if authorities and rules.public and rules.thumbprints is None:
        yield Finding(
            "CLOUD-CERTIFICATE-PRIVATE",
            Severity.ERROR,
            f"{rules.title} believes public certificate authorities only",
            "serve the documents with a certificate of one, for example from a bucket"
            + (", or upload the file `keys` with --jwk-json-path" if rules.name == "gcp" else ""),
            rules.private_ca_source,
        )
    if (most := _above(len(authorities), rules.thumbprints)) is not None:
        yield Finding(
            "CLOUD-THUMBPRINT-COUNT",
            Severity.ERROR,
            f"{rules.title} takes {most.most} thumbprints, and the file has {len(authorities)} certificates",
            "name a file with the authority of the issuer's host alone",
            most.source,
        )


def _keys(rules: VerifierRules, bundle: TrustBundle) -> Iterator[Finding]:
    keys = bundle.jwt_authorities
    if not keys:
        yield Finding(
            "CLOUD-KEY-NONE",
            Severity.ERROR,
            "the trust bundle has no JWT key, so no JWT-SVID can be verified",
            "see that jwt.disabled is false on the servers",
        )
    foreign = [(one.key_id, algorithm_of(one.key)) for one in keys if algorithm_of(one.key) not in rules.algorithms]
    if foreign:
        taken = ", ".join(sorted(rules.algorithms))
        yield Finding(
            "CLOUD-KEY-ALGORITHM",
            Severity.ERROR if len(foreign) == len(keys) else Severity.WARNING,
            f"{rules.title} takes {taken}; {_named([f'the key {kid} makes {name}' for kid, name in foreign])}",
            'set jwt.key_type = "rsa-2048", then prepare and activate a JWT key (localauthority jwt)',
            rules.algorithms_source,
        )
    rsa_keys = sum(isinstance(one.key, rsa.RSAPublicKey) for one in keys)
    for kind, count in (("RSA", rsa_keys), ("EC", len(keys) - rsa_keys)):
        if (most := _above(count, rules.keys_of_a_kind)) is not None:
            yield Finding(
                "CLOUD-KEY-COUNT",
                Severity.ERROR,
                f"there are {count} {kind} keys and {rules.title} takes {most.most}",
                "rotate less often or shorten ca.ttl, so that old keys leave the bundle; then wait until they have",
                most.source,
            )
    size = len(dump_bundle_pem(bundle)) if rules.anchor_bytes is not None else 0
    if (most := _above(size, rules.anchor_bytes)) is not None:
        yield Finding(
            "CLOUD-BUNDLE-SIZE",
            Severity.WARNING,
            f"the X.509 authorities have {size} bytes in PEM and a trust anchor of {rules.title} takes {most.most}",
            "tokens are not concerned; for certificates let fewer servers be their own root (an upstream authority)",
            most.source,
        )


def _subjects(rules: VerifierRules, subjects: Sequence[Subject]) -> Iterator[Finding]:
    limit = rules.subject
    if limit is not None:
        long = [f"{one.spiffe_id} ({len(one.spiffe_id)})" for one in subjects if len(one.spiffe_id) > limit.longest]
        if long:
            yield Finding(
                "CLOUD-SUBJECT-LENGTH",
                Severity.ERROR,
                f"{rules.title} takes subjects of {limit.longest} characters; too long: {_named(long)}",
                "give these workloads a shorter SPIFFE ID beside, for their tokens",
                limit.source,
            )
    if (most := _above(len({one.spiffe_id for one in subjects}), rules.subjects)) is not None:
        yield Finding(
            "CLOUD-SUBJECT-COUNT",
            Severity.WARNING,
            f"there are {len(subjects)} SPIFFE IDs and one application takes {most.most} of them",
            "spread them over several applications or managed identities; choose with --spiffe-id",
            most.source,
        )
    if (most := rules.token_seconds) is not None:
        long = [f"{one.spiffe_id} ({one.token_seconds} s)" for one in subjects if one.token_seconds >= most.most]
        if long:
            yield Finding(
                "CLOUD-TOKEN-LIFETIME",
                Severity.ERROR,
                f"{rules.title} takes tokens that live less than {most.most} s; longer: {_named(long)}",
                "shorten -jwtSVIDTTL of these entries",
                most.source,
            )


def _audiences(rules: VerifierRules, audiences: Sequence[str]) -> Iterator[Finding]:
    if rules.audience_length is not None:
        long = [one[:40] for one in audiences if len(one) > rules.audience_length.most]
        if long:
            yield Finding(
                "CLOUD-AUDIENCE-LENGTH",
                Severity.ERROR,
                f"{rules.title} takes audiences of {rules.audience_length.most} characters; longer begins: "
                f"{_named(long)}",
                "choose shorter ones",
                rules.audience_length.source,
            )
    if (most := _above(len(audiences), rules.audiences)) is not None:
        yield Finding(
            "CLOUD-AUDIENCE-COUNT",
            Severity.ERROR,
            f"{rules.title} takes {most.most} audiences in one place, and {len(audiences)} were named",
            "name fewer with --audience",
            most.source,
        )


def _documents(
    presented: Presented, configuration: Mapping[str, object], keys: Mapping[str, object]
) -> Iterator[Finding]:
    told = configuration.get("issuer")
    if told != presented.issuer:
        yield Finding(
            "CLOUD-DOCUMENT-ISSUER",
            Severity.ERROR,
            "the discovery document names another issuer than tokens have; verifiers compare letter for letter",
            "write or serve it for the issuer of the server's jwt.issuer",
            "OpenID Connect Discovery 1.0 section 4.3",
        )
    listed = keys.get("keys")
    served = {one.get("kid") for one in listed if isinstance(one, dict)} if isinstance(listed, list) else set()
    missing = [one.key_id for one in presented.bundle.jwt_authorities if one.key_id not in served]
    if missing:
        yield Finding(
            "CLOUD-DOCUMENT-KEYS",
            Severity.ERROR,
            f"keys of the trust bundle are not served: {_named(missing)}; what they sign is refused",
            "see that the documents are written when the keys change (`identity-server oidc write --watch`)",
        )


def _above(count: int, limit: Limit | None) -> Limit | None:
    return limit if limit is not None and count > limit.most else None


def _named(things: Sequence[str]) -> str:
    rest = len(things) - MOST_NAMED
    return ", ".join(things[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host == "localhost" or host.endswith(_PRIVATE_NAMES[1:])
