"""What must survive a restart."""

from node_agent.domain.node_state import NodeState
from tests.builders import OTHER_TD, TD, make_bundle


def test_the_bundle_proves_its_own_trust_domain_only():
    """N-X-18: never the union of what is trusted."""
    bundle = make_bundle()
    state = NodeState(TD, bundle=bundle)
    assert state.bundle_of(TD) is bundle
    assert state.bundle_of(OTHER_TD) is None


def test_no_key_is_in_its_repr():
    from spiffe_core.crypto.keys import PrivateKeyDer

    assert "c2VjcmV0" not in repr(NodeState(TD, pending_key=PrivateKeyDer(b"secret")))
    assert "secret" not in repr(NodeState(TD, pending_key=PrivateKeyDer(b"secret")))
