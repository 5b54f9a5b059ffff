"""Trust domains as real processes that federate: rotation on both sides, a peer that is away, one that was restored.

Workloads are this test: both agents see its user.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from identity_server.rpc.services import BUNDLE
from spiffe_core.terminal.pem_files import split_der
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from tests.doubles.federated_stacks import FederatedStack, federate, x509_of

pytestmark = pytest.mark.slow

WAIT = 40.0


def until(condition, seconds=WAIT):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.25)
    return found


def authorities(stack, name):
    """The X.509 authorities of another trust domain that a workload of this one holds."""
    try:
        joined = stack.x509_svid().federated_bundles.get(f"spiffe://{name}", b"")
    except grpc.RpcError:  # no identity yet
        return set()
    return set(split_der(joined, field=name)) if joined else set()


def issued(stack, audience):
    """A new token; "" as long as the agent has not found its server again."""
    try:
        return stack.token(audience)
    except grpc.RpcError:
        return ""


def prepared(stack, kind):
    return stack.admin_json("localauthority", kind, "prepare")["prepared_authority"]["authority_id"]


@pytest.fixture(scope="module")
def pair():
    """Two domains that federated with one line in each direction; each has a workload that trusts the other."""
    with FederatedStack("a.test", sync_interval="200ms") as a, FederatedStack("b.test", sync_interval="200ms") as b:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(FederatedStack.start, (a, b)))
        federate(a, b)
        for one, other in ((a, b), (b, a)):
            one.register("/app", f"unix:uid:{os.getuid()}", federates_with=(other.trust_domain,))
        yield a, b


def test_one_line_in_each_direction_lets_workloads_verify_each_other(pair):
    """Issue 6 item 4: what was fetched reaches workloads through the push stream, X.509 and JWT."""
    a, b = pair
    for one, other in ((a, b), (b, a)):
        until(lambda one=one, other=other: authorities(one, other.trust_domain) == x509_of(other.own_bundle()))
        until(lambda one=one, other=other: (text := issued(other, "both")) and one.validate("both", text))


def test_both_domains_change_their_keys_and_nobody_stops_verifying(pair):
    """FED-01, FED-03: new keys arrive at the other side by themselves before they sign, the old ones go on being good."""
    a, b = pair
    both = ((a, b), (b, a))
    old = {one: one.token("both") for one in pair}
    assert all(other.validate("both", old[one]) for one, other in both)
    new = [(one, kind, prepared(one, kind)) for one in pair for kind in ("x509", "jwt")]
    for one, other in both:
        until(lambda one=one, other=other: known(other, one))
    with ThreadPoolExecutor(len(new)) as threads:  # each answers only when nobody can be surprised any more

        def activate(which):
            one, kind, authority_id = which
            one.admin("localauthority", kind, "activate", "-authorityID", authority_id)

        list(threads.map(activate, new))
    for one, other in both:
        fresh = until(lambda one=one: issued(one, "after"))
        assert kid(fresh) != kid(old[one]), "the new key signs"
        until(lambda other=other, fresh=fresh: other.validate("after", fresh))
        assert other.validate("both", old[one]), "and the old one is still in the bundle"
        assert authorities(other, one.trust_domain) == x509_of(one.own_bundle())


def kid(text):
    head = text.partition(".")[0]
    return json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"]


def known(one, other):
    """Whether a server holds the other's present bundle."""
    return one.bundle_of(other.trust_domain).x509_authorities == other.own_bundle().x509_authorities


def test_a_server_that_is_away_for_longer_than_its_hint_harms_nobody(pair):
    """N-F-18, FED-45: the hint is a second; the last bundle stays in force, registration goes on, the error is told."""
    a, b = pair
    before, text = a.keys_of("b.test"), b.token("both")
    b.server.stop()
    state = until(lambda: "Connection refused" in (found := a.state_of("b.test")).error and found)
    assert f"Last error                : {state.error}" in a.admin("federation", "show", "-trustDomain", "b.test")
    assert a.keys_of("b.test") == before
    a.register("/registered", "unix:uid:4000000000", federates_with=("b.test",))
    assert authorities(a, "b.test") == before
    assert a.validate("both", text), "nobody needs b's server for that"
    b.start_server()
    until(lambda: not a.state_of("b.test").error)


def test_a_server_restored_from_an_old_backup_is_not_believed_until_somebody_says_so(pair):
    """FED-09, S61: its sequence is older; the newer bundle stays, the error says what to do, a new invitation is the way."""
    a, b = pair
    b.server.stop()
    data, backup = b.folder / "server-data", b.folder / "backup"
    shutil.copytree(data, backup)
    b.start_server()
    b.admin("localauthority", "jwt", "prepare")
    until(lambda: known(a, b))
    newest = a.bundle_of("b.test")
    newest.sequence_number += 1 << 40  # what b did in a year of which the backup knows nothing
    a.call(BUNDLE, "BatchSetFederatedBundle", bundle_pb2.BatchSetFederatedBundleRequest(bundle=[newest]))
    b.server.stop()
    shutil.rmtree(data)
    backup.rename(data)
    b.start_server()
    state = until(lambda: "older bundle" in (found := a.state_of("b.test")).error and found)
    assert "invitation" in state.error
    assert a.bundle_of("b.test") == newest
    a.accept(b.invite())
    assert a.state_of("b.test").error == ""
    until(lambda: known(a, b))
    until(lambda: (text := issued(b, "restored")) and a.validate("restored", text))


def test_a_third_domain_federates_with_one_and_stays_apart_from_the_other(pair):
    """FED-12: c learns a's keys and a learns c's; b, who federates with a, learns nothing of c."""
    a, b = pair
    with FederatedStack("c.test") as c:
        c.start_server()
        federate(a, c)
        assert c.keys_of("a.test") == x509_of(a.own_bundle())
        assert a.keys_of("c.test") == x509_of(c.own_bundle())
        with pytest.raises(grpc.RpcError, match="not found"):
            b.bundle_of("c.test")
        assert "Found 2 federation relationships" in a.admin("federation", "list")


def test_the_end_of_a_relationship_reaches_workloads(pair):
    """FED-46: no more fetches; with the bundle gone, nothing of that domain is trusted, at once."""
    a, b = pair
    text = b.token("both")
    assert a.validate("both", text)
    a.admin("federation", "delete", "-id", "b.test")
    a.admin("bundle", "delete", "-id", "b.test", "-mode", "dissociate")
    until(lambda: not authorities(a, "b.test"))
    until(lambda: not a.validate("both", text))
