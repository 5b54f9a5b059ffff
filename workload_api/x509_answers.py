"""Answers of the X.509 profile of the Workload API and of the Broker API (spiffe_conformance sections 2.2, 2.8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import NoIdentityIssued, Unavailable
from spiffe_core.wire._gen import workload_pb2
from workload_api.backend import WorkloadView, X509Identity
from workload_api.expiry import expiries


def x509_svid_response(view: WorkloadView, now: datetime) -> bytes:
    """The serialized X509SVIDResponse of `view`, without SVIDs that have expired (N-A-26).

    Raises:
        NoIdentityIssued: nothing matches the caller.
        Unavailable: everything has expired, or no authority of the trust domain is known.
    """
    if not view.x509_svids:
        raise NoIdentityIssued
    valid = [number for number, expiry in enumerate(expiries(view)) if now.timestamp() < expiry]
    if not valid:
        raise Unavailable("the identity has expired and could not be renewed yet; the agent keeps trying")
    if not view.bundle.x509_roots:
        raise Unavailable("no X.509 authority of the trust domain is known yet (conformance D10)")
    whole = len(valid) == len(view.x509_svids)
    name = "FetchX509SVID" if whole else f"FetchX509SVID of {valid}"
    message = view.rendered.get(name)
    if message is None:
        message = view.rendered[name] = _render_svids([view.x509_svids[number] for number in valid], view)
    return message


def _render_svids(svids: Sequence[X509Identity], view: WorkloadView) -> bytes:
    own = _roots(view.bundle)
    response = workload_pb2.X509SVIDResponse(federated_bundles=_by_id(view.federated))
    used: set[str] = set()
    for svid in svids:
        # A hint names one identity of the response (WAPI-24): the first keeps it.
        hint = "" if svid.hint in used else svid.hint
        used.add(hint)
        response.svids.add(
            spiffe_id=str(svid.spiffe_id),
            x509_svid=b"".join(svid.chain),
            x509_svid_key=svid.key.reveal(),
            bundle=own,
            hint=hint,
        )
    return response.SerializeToString(deterministic=True)


def x509_bundles_response(view: WorkloadView) -> bytes:
    """The serialized X509BundlesResponse: the own trust domain always (WAPI-29), others for those with an identity."""
    message = view.rendered.get("FetchX509Bundles")
    if message is None:
        bundles = _by_id(view.federated if view.x509_svids else ())
        bundles[str(view.bundle.trust_domain.id)] = _roots(view.bundle)
        message = workload_pb2.X509BundlesResponse(bundles=bundles).SerializeToString(deterministic=True)
        view.rendered["FetchX509Bundles"] = message
    return message


def _by_id(bundles: Iterable[TrustBundle]) -> dict[str, bytes]:
    """By trust domain SPIFFE ID. A domain without X.509 authorities is absent, which says: trust nobody of it."""
    return {str(bundle.trust_domain.id): _roots(bundle) for bundle in bundles if bundle.x509_roots}


def _roots(bundle: TrustBundle) -> bytes:
    return b"".join(bundle.x509_roots)
