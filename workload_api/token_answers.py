"""Requests and answers of the JWT and WIT profiles of the Workload API (spiffe_conformance sections 2.3, 2.4, 2.8)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.struct_pb2 import Struct

from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import dump_token_keys
from spiffe_core.errors import InvalidId, InvalidRequest, NoIdentityIssued, VerificationFailed
from spiffe_core.jwt_svid import JwtSvid, check_audience
from spiffe_core.jwt_verify import verify_jwt_svid
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen import workload_pb2
from workload_api.backend import VisibleBundles, WitIdentity, WitView, WorkloadView

_Token = TypeVar("_Token", JwtSvid, WitIdentity)

SPIFFE_CLAIMS = frozenset({"sub", "exp", "aud"})
"""Always returned (WAPI-43); others of another trust domain's tokens only if the operator names them."""
MAX_TOKEN_BYTES = 64 * 1024


def wanted_audience(audience: Collection[str]) -> tuple[str, ...]:
    """The audiences a token is asked for.

    Raises:
        InvalidRequest: there is none, or one of them is blank (N-A-11, N-A-12), or there are too many.
    """
    if not audience:
        raise InvalidRequest("audience must be specified", field="audience")
    if not all(one.strip() for one in audience):
        raise InvalidRequest("audience: must not be blank", field="audience")
    return check_audience(audience)


def wanted_id(text: str) -> SpiffeId | None:
    """The SPIFFE ID that is asked for; None when all are.

    Raises:
        InvalidRequest: it is malformed (N-A-14).
    """
    if not text:
        return None
    try:
        return SpiffeId.parse(text, field="spiffe_id")
    except InvalidId as error:
        raise InvalidRequest(f"invalid requested SPIFFE ID: {error.public}", field="spiffe_id") from None


def jwt_svid_response(svids: Sequence[JwtSvid]) -> bytes:
    """The serialized JWTSVIDResponse. A hint stands once (WAPI-35)."""
    response = workload_pb2.JWTSVIDResponse()
    for svid, hint in _with_hints(svids):
        response.svids.add(spiffe_id=str(svid.spiffe_id), svid=svid.token, hint=hint)
    return response.SerializeToString()


def jwt_bundles_response(view: WorkloadView, *, key_use: bool = False) -> bytes:
    """The serialized JWTBundlesResponse: the own trust domain always (WAPI-38), JWT keys and no others (WAPI-39).

    `key_use` adds `use`, which some clients want and others drop a key for (conformance D7).
    """
    use = "jwt-svid" if key_use else ""
    message = view.rendered.get("FetchJWTBundles")
    if message is None:
        federated = view.federated if view.x509_svids else ()
        bundles = {str(one.trust_domain.id): _jwt_keys(one, use) for one in federated if one.jwt_authorities}
        bundles[str(view.bundle.trust_domain.id)] = _jwt_keys(view.bundle, use)
        message = workload_pb2.JWTBundlesResponse(bundles=bundles).SerializeToString(deterministic=True)
        view.rendered["FetchJWTBundles"] = message
    return message


def wit_svid_response(view: WitView, requested: SpiffeId | None) -> bytes:
    """The serialized WITSVIDResponse.

    Raises:
        NoIdentityIssued: nothing matches the caller, or not what it asked for (WAPI-53).
    """
    chosen = [one for one in view.wit_svids if requested is None or one.spiffe_id == requested]
    if not chosen:
        raise NoIdentityIssued
    response = workload_pb2.WITSVIDResponse()
    for svid, hint in _with_hints(chosen):
        response.svids.add(spiffe_id=str(svid.spiffe_id), wit_svid=svid.token, wit_svid_key=svid.key, hint=hint)
    return response.SerializeToString()


def wit_bundles_response(view: WorkloadView) -> bytes:
    """The serialized WITBundlesResponse: the own trust domain always (WAPI-56)."""
    message = view.rendered.get("FetchWITBundles")
    if message is None:
        federated = view.federated if view.x509_svids else ()
        bundles = {str(one.trust_domain.id): _wit_keys(one) for one in federated if one.wit_authorities}
        bundles[str(view.bundle.trust_domain.id)] = _wit_keys(view.bundle)
        message = workload_pb2.WITBundlesResponse(bundles=bundles).SerializeToString(deterministic=True)
        view.rendered["FetchWITBundles"] = message
    return message


def check_validation(audience: str, token: str) -> None:
    """The mandatory fields of ValidateJWTSVID (N-A-18).

    Raises:
        InvalidRequest: one is missing or of absurd length.
    """
    if not audience.strip():
        raise InvalidRequest("audience must be specified", field="audience")
    if not token:
        raise InvalidRequest("svid must be specified", field="svid")
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidRequest(f"svid: has more than {MAX_TOKEN_BYTES} bytes", field="svid")


def validate_response(
    token: str, audience: str, visible: VisibleBundles, now: datetime, *, foreign_claims: Collection[str] = ()
) -> bytes:
    """The serialized ValidateJWTSVIDResponse for a token that is good; nothing of a bad one is quoted.

    Raises:
        InvalidRequest: the token does not prove an identity to `audience` (conformance D14).
    """
    try:
        verified = verify_jwt_svid(token, visible.get, audience=(audience,), now=now)
    except VerificationFailed as failure:
        raise InvalidRequest(f"svid: {failure.public}", field="svid", reason=failure.reason.value) from None
    claims = {**verified.claims, "aud": list(verified.audience)}
    if verified.spiffe_id.trust_domain != visible.bundle.trust_domain:
        shown = SPIFFE_CLAIMS | frozenset(foreign_claims)
        claims = {name: value for name, value in claims.items() if name in shown}
    response = workload_pb2.ValidateJWTSVIDResponse(spiffe_id=str(verified.spiffe_id), claims=_struct(claims))
    return response.SerializeToString()


def _struct(claims: Mapping[str, Any]) -> Struct:
    struct = Struct()
    try:
        struct.update(claims)
    except (ValueError, OverflowError, RecursionError):
        raise InvalidRequest("svid: a claim cannot be shown as a protobuf value", field="svid") from None
    return struct


def _jwt_keys(bundle: TrustBundle, use: str) -> bytes:
    return dump_token_keys(bundle.jwt_authorities, use=use)


def _wit_keys(bundle: TrustBundle) -> str:
    return dump_token_keys(bundle.wit_authorities).decode("ascii")


def _with_hints(svids: Iterable[_Token]) -> Iterable[tuple[_Token, str]]:
    """Each SVID with its hint; a hint names one identity of a response, and the first keeps it."""
    used: set[str] = set()
    for svid in svids:
        hint = "" if svid.hint in used else svid.hint
        used.add(hint)
        yield svid, hint
