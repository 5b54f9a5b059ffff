"""Files of federation relationships: what `federation create -data` reads.

`{"federationRelationships": [...]}` as SPIRE's CLI documents it, and what `federation list -output json` prints, so
that relationships can be carried from one server to another.
"""

from __future__ import annotations

import json
from typing import Any, Final

from google.protobuf import json_format

from identity_server.cli.bundle_files import FORMATS, parse_bundle, read_file
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.terminal.failures import Failure
from spiffe_core.wire._gen.spire.api.types import federationrelationship_pb2 as types_pb2

Relationship = types_pb2.FederationRelationship
_FIELDS: Final = (
    "trustDomain",
    "bundleEndpointURL",
    "bundleEndpointProfile",
    "endpointSPIFFEID",
    "trustDomainBundle",
    "trustDomainBundleFormat",
)


def described(given: dict[str, str], place: str = "") -> Relationship:
    """The relationship that flags, or an item of a file, describe. `place` is put before field names in messages."""
    for name in ("trustDomain", "bundleEndpointURL", "bundleEndpointProfile"):
        if not given.get(name):
            raise Failure(f"{place}{name} is required", "see the example in --help")
    made = Relationship(
        trust_domain=TrustDomain.parse(given["trustDomain"], field=f"{place}trustDomain").name,
        bundle_endpoint_url=given["bundleEndpointURL"],
    )
    profile, who = given["bundleEndpointProfile"], given.get("endpointSPIFFEID", "")
    if profile == "https_web":
        made.https_web.SetInParent()
    elif profile == "https_spiffe":
        if not who:
            raise Failure(f"{place}endpointSPIFFEID is required with the profile https_spiffe")
        made.https_spiffe.endpoint_spiffe_id = str(SpiffeId.parse(who, field=f"{place}endpointSPIFFEID"))
    else:
        raise Failure(f"{place}bundleEndpointProfile: {profile!r} is neither https_web nor https_spiffe")
    return made


def read_relationships(file: str) -> list[Relationship]:
    """The relationships in `{"federationRelationships": [...]}`, or as lists print them.

    Unknown keys are refused by name.
    """
    name = "standard input" if file == "-" else file
    try:
        tree = json.loads(read_file(file, "--data"))
    except (ValueError, RecursionError) as error:
        raise Failure(f"{name}: is not JSON: {error}") from None
    if isinstance(tree, dict) and "federation_relationships" in tree:
        return _printed(tree["federation_relationships"], f"{name}: federation_relationships")
    items = tree.get("federationRelationships") if isinstance(tree, dict) else None
    if not isinstance(items, list) or not items:
        raise Failure(f"{name}: federationRelationships: must be a list of objects")
    return [_relationship(item, f"{name}: federationRelationships[{number}].") for number, item in enumerate(items)]


def _printed(items: Any, place: str) -> list[Relationship]:
    """Relationships as lists print them, message by message."""
    if not isinstance(items, list) or not items:
        raise Failure(f"{place}: must be a list of objects")
    try:
        return [json_format.ParseDict(item, Relationship()) for item in items]
    except (json_format.ParseError, TypeError, AttributeError) as error:
        raise Failure(f"{place}: {error}", "give what `federation list -output json` printed") from None


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
