"""Files of federation relationships: what `federation create -data` reads, in SPIRE's form."""

from __future__ import annotations

import json
from typing import Any, Final

from identity_server.cli.bundle_files import FORMATS, parse_bundle, read_file
from identity_server.cli.federation import Relationship, described
from spiffe_core.terminal.failures import Failure

_FIELDS: Final = (
    "trustDomain",
    "bundleEndpointURL",
    "bundleEndpointProfile",
    "endpointSPIFFEID",
    "trustDomainBundle",
    "trustDomainBundleFormat",
)


def read_relationships(file: str) -> list[Relationship]:
    """The relationships in `{"federationRelationships": [...]}`; unknown keys are refused by name."""
    name = "standard input" if file == "-" else file
    try:
        tree = json.loads(read_file(file, "--data"))
    except (ValueError, RecursionError) as error:
        raise Failure(f"{name}: is not JSON: {error}") from None
    items = tree.get("federationRelationships") if isinstance(tree, dict) else None
    if not isinstance(items, list) or not items:
        raise Failure(f"{name}: federationRelationships: must be a list of objects")
    return [_relationship(item, f"{name}: federationRelationships[{number}].") for number, item in enumerate(items)]


def _relationship(item: Any, place: str) -> Relationship:
    if not isinstance(item, dict):
        raise Failure(f"{place.removesuffix('.')}: must be an object")
    for key, value in item.items():
        if key not in _FIELDS:
            raise Failure(f"{place}{key}: is not a field of a relationship", f"known fields: {', '.join(_FIELDS)}")
        if key != "trustDomainBundle" and not isinstance(value, str):
            raise Failure(f"{place}{key}: must be text")
    made = described(item, place)
    bundle = item.get("trustDomainBundle")
    if bundle is not None:
        form = item.get("trustDomainBundleFormat") or "pem"
        if form not in FORMATS:
            raise Failure(f"{place}trustDomainBundleFormat: {form!r} is neither pem nor spiffe")
        if isinstance(bundle, str) != (form == "pem"):
            raise Failure(f"{place}trustDomainBundle: must be text in PEM, or an object with the format spiffe")
        data = bundle if isinstance(bundle, str) else json.dumps(bundle)
        made.trust_domain_bundle.CopyFrom(parse_bundle(data.encode(), form, made.trust_domain, f"{place}trustDomain"))
    return made
