"""What an administrator may have signed without a registration entry (spire_wire section 5.4, N-C-08 to N-C-12)."""

from __future__ import annotations

from spiffe_core.crypto.csr import Csr
from spiffe_core.dns_name import check_dns_name
from spiffe_core.errors import InvalidCsr, InvalidRequest
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

MAX_DNS_NAMES = 100


def check_mint(csr: Csr, trust_domain: TrustDomain) -> SpiffeId:
    """The SPIFFE ID a minting request asks for.

    1. There is exactly one URI SAN.
    2. It is a SPIFFE ID of this trust domain with a path that is not reserved.
    3. Its DNS names are well-formed, not too many, given once, and no wildcard covers another of them.

    Raises:
        InvalidCsr: the message names the rule.
    """
    if len(csr.uri_sans) != 1:  # (1)
        raise InvalidCsr(f"CSR must have exactly one URI SAN, it has {len(csr.uri_sans)}", field="csr")
    try:
        spiffe_id = SpiffeId.parse(csr.uri_sans[0], field="csr")  # (2)
    except InvalidRequest as error:
        raise InvalidCsr(f"CSR URI SAN is invalid: {error.public}", field="csr") from None
    if not spiffe_id.member_of(trust_domain):
        raise InvalidCsr(f'CSR URI SAN is invalid: "{spiffe_id}" is not a member of "{trust_domain}"', field="csr")
    if not spiffe_id.path:
        raise InvalidCsr("CSR URI SAN is invalid: the trust domain's own ID cannot be minted, add a path", field="csr")
    if spiffe_id.is_reserved:
        raise InvalidCsr("CSR URI SAN is invalid: paths under /spire are reserved", field="csr")
    _check_dns_names(csr.dns_names)  # (3)
    return spiffe_id


def check_ca_request(csr: Csr, trust_domain: TrustDomain) -> None:
    """Whether a request is for a CA certificate of this trust domain: its one URI SAN is the trust domain's own ID.

    Raises:
        InvalidCsr: the message names the rule.
    """
    if len(csr.uri_sans) != 1:
        raise InvalidCsr(f"CSR must have exactly one URI SAN, it has {len(csr.uri_sans)}", field="csr")
    if csr.uri_sans[0] != str(trust_domain.id):
        raise InvalidCsr(f'CSR URI SAN must be "{trust_domain.id}"', field="csr")


def check_subject(spiffe_id: SpiffeId, trust_domain: TrustDomain) -> None:
    """Whether an administrator may have a token minted for this SPIFFE ID: of this trust domain, with a free path.

    Raises:
        InvalidRequest: the message names the rule.
    """
    if not spiffe_id.member_of(trust_domain):
        raise InvalidRequest(f'invalid SPIFFE ID: "{spiffe_id}" is not a member of "{trust_domain}"', field="id")
    if not spiffe_id.path:
        raise InvalidRequest("invalid SPIFFE ID: the trust domain's own ID cannot be minted, add a path", field="id")
    if spiffe_id.is_reserved:
        raise InvalidRequest("invalid SPIFFE ID: paths under /spire are reserved", field="id")


def _check_dns_names(names: tuple[str, ...]) -> None:
    if len(names) > MAX_DNS_NAMES:
        raise InvalidCsr(f"CSR has {len(names)} DNS names, at most {MAX_DNS_NAMES} are allowed", field="csr")
    lowered = [name.lower() for name in names]
    for name in names:
        try:
            check_dns_name(name)
        except InvalidRequest as error:
            raise InvalidCsr(f"CSR DNS name is not valid: {error.public}", field="csr") from None
    if len(set(lowered)) != len(lowered):
        raise InvalidCsr("CSR DNS names: a name is given twice", field="csr")
    for name in lowered:
        parent = name.partition(".")[2]
        if not name.startswith("*.") and f"*.{parent}" in lowered:
            raise InvalidCsr(f'CSR DNS name "{name}" is covered by the wildcard "*.{parent}"', field="csr")
