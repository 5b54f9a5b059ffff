"""Messages to values and back: the one place that knows both. This module is the map; each area has its own file."""

from spiffe_core.wire.convert_bundle import (
    bundle_from_proto,
    bundle_to_proto,
    jwt_authorities_from_proto,
    jwt_authorities_to_proto,
    wit_authorities_from_proto,
    wit_authorities_to_proto,
    x509_authorities_from_proto,
    x509_authorities_to_proto,
)
from spiffe_core.wire.convert_entry import apply_entry_mask, entry_from_proto, entry_to_proto, mask_entry
from spiffe_core.wire.convert_ids import (
    chain_from_proto,
    selectors_from_proto,
    selectors_to_proto,
    spiffe_id_from_proto,
    spiffe_id_to_proto,
    trust_domain_from_proto,
    x509_svid_to_proto,
)
from spiffe_core.wire.masks import mask_of, masked

__all__ = [
    "trust_domain_from_proto",
    "spiffe_id_from_proto",
    "spiffe_id_to_proto",
    "selectors_from_proto",
    "selectors_to_proto",
    "entry_from_proto",
    "entry_to_proto",
    "apply_entry_mask",
    "mask_entry",
    "mask_of",
    "masked",
    "bundle_from_proto",
    "bundle_to_proto",
    "x509_authorities_from_proto",
    "x509_authorities_to_proto",
    "jwt_authorities_from_proto",
    "jwt_authorities_to_proto",
    "wit_authorities_from_proto",
    "wit_authorities_to_proto",
    "x509_svid_to_proto",
    "chain_from_proto",
]
