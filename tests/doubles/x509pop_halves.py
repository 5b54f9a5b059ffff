"""Both halves of x509pop, over the PKI of the tests."""

from attestors.api import Attested, Challenge, advance
from attestors.node.x509pop import (
    ProverSettings,
    VerifierPorts,
    VerifierSettings,
    X509PopProver,
    X509PopVerifier,
)
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.spiffe_id import TrustDomain
from tests.doubles.node_pki import NodePki
from tests.doubles.x509pop_messages import DIGEST

PKI = NodePki()
RSA_KEY = generate(KeyKind.RSA_2048)
TD = TrustDomain("example.org")


def verifier(folder, pki=PKI, **settings):
    settings = {"ca_bundle_path": str(pki.bundle(folder)), **settings}
    return X509PopVerifier(VerifierSettings(**settings), VerifierPorts(TD, lambda: pki.now))


def prover(folder, node):
    return X509PopProver(ProverSettings(**node.files(folder)))


def attest(check, proof):
    """Carry messages between the two halves until there is a verdict."""
    steps = proof.prove()
    dialogue = check.verify(next(steps), DIGEST)
    outcome = advance(dialogue)
    while isinstance(outcome, Challenge):
        outcome = advance(dialogue, steps.send(outcome.data))
    assert isinstance(outcome, Attested)
    return outcome


def values(verdict):
    assert {selector.type for selector in verdict.selectors} == {"x509pop"}
    return {selector.value for selector in verdict.selectors}
