"""x509pop: answers to a challenge, and the half of the agent (spire_wire 7, 18.2)."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from attestors.api import Attested, advance
from attestors.node.x509pop import (
    ProverSettings,
    X509PopProver,
)
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import (
    ConfigError,
    Forbidden,
    IdentityError,
    InvalidRequest,
    PreconditionFailed,
)
from tests.doubles.node_pki import Node, write_certificates, write_key
from tests.doubles.x509pop_halves import PKI, RSA_KEY, attest, prover, values, verifier
from tests.doubles.x509pop_messages import DIGEST, payload


class TestAnswer:
    """The proof itself."""

    def begin(self, folder, node):
        dialogue = verifier(folder).verify(payload(node.leaf), DIGEST)
        challenge = json.loads(advance(dialogue).data)
        (kind,) = challenge
        return dialogue, kind, base64.b64decode(challenge[kind]["nonce"])

    def ecdsa(self, key, theirs, ours=b"o" * 32, **over):
        r, s = decode_dss_signature(
            key.sign(hashlib.sha256(theirs + ours).digest(), ec.ECDSA(Prehashed(hashes.SHA256())))
        )
        part = {"nonce": ours, "r": r.to_bytes(32), "s": s.to_bytes(32), **over}
        return {name: base64.b64encode(value).decode() for name, value in part.items() if value is not None}

    def send(self, dialogue, document):
        return advance(dialogue, json.dumps(document).encode())

    def test_go_writes_the_kind_that_is_absent_as_null(self, tmp_path):
        node = PKI.node()
        dialogue, kind, nonce = self.begin(tmp_path, node)
        assert (kind, len(nonce)) == ("ecdsa_signature", 32)
        verdict = self.send(dialogue, {"rsa_signature": None, kind: self.ecdsa(node.key, nonce)})
        assert isinstance(verdict, Attested)

    @pytest.mark.parametrize("salt", [0, 20, 32, padding.PSS.MAX_LENGTH])
    def test_any_salt_is_found_out(self, tmp_path, salt):
        """The verifier detects the length; Go's signer uses the largest."""
        node = PKI.node(key=RSA_KEY)
        dialogue, kind, nonce = self.begin(tmp_path, node)
        assert kind == "rsa_signature"
        digest = hashlib.sha256(nonce + b"o" * 32).digest()
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), salt)
        signature = RSA_KEY.sign(digest, scheme, Prehashed(hashes.SHA256()))
        part = {"nonce": base64.b64encode(b"o" * 32).decode(), "signature": base64.b64encode(signature).decode()}
        assert isinstance(self.send(dialogue, {kind: part}), Attested)

    def test_pkcs1_signatures_are_not_pss(self, tmp_path):
        dialogue, kind, nonce = self.begin(tmp_path, PKI.node(key=RSA_KEY))
        digest = hashlib.sha256(nonce + b"o" * 32).digest()
        signature = RSA_KEY.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
        part = {"nonce": base64.b64encode(b"o" * 32).decode(), "signature": base64.b64encode(signature).decode()}
        with pytest.raises(Forbidden, match="challenge response verification failed"):
            self.send(dialogue, {kind: part})

    def test_another_key(self, tmp_path):
        dialogue, kind, nonce = self.begin(tmp_path, PKI.node())
        with pytest.raises(Forbidden, match="challenge response verification failed"):
            self.send(dialogue, {kind: self.ecdsa(generate(KeyKind.EC_P256), nonce)})

    def test_an_answer_to_another_challenge(self, tmp_path):
        """A recorded answer proves nothing: each dialogue has its own nonce."""
        node = PKI.node()
        _, kind, nonce = self.begin(tmp_path, node)
        dialogue, _, fresh = self.begin(tmp_path, node)
        assert nonce != fresh
        with pytest.raises(Forbidden):
            self.send(dialogue, {kind: self.ecdsa(node.key, nonce)})

    @pytest.mark.parametrize("ours", [b"", b"o" * 31, b"o" * 33])
    def test_the_nonce_has_32_bytes(self, tmp_path, ours):
        """S36."""
        node = PKI.node()
        dialogue, kind, nonce = self.begin(tmp_path, node)
        with pytest.raises(InvalidRequest):
            self.send(dialogue, {kind: self.ecdsa(node.key, nonce, ours)})

    @pytest.mark.parametrize("over", [{"r": None}, {"s": b""}, {"r": b"\0"}, {"r": b"\xff" * 66}, {"s": b"\xff" * 67}])
    def test_odd_numbers(self, tmp_path, over):
        node = PKI.node()
        dialogue, kind, nonce = self.begin(tmp_path, node)
        with pytest.raises((InvalidRequest, Forbidden)):
            self.send(dialogue, {kind: self.ecdsa(node.key, nonce, **over)})

    @pytest.mark.parametrize(
        "document", [{}, [], {"rsa_signature": {}}, {"ecdsa_signature": None}, {"ecdsa_signature": 1}]
    )
    def test_the_other_kind_or_none(self, tmp_path, document):
        dialogue, _, _ = self.begin(tmp_path, PKI.node())
        with pytest.raises(InvalidRequest):
            self.send(dialogue, document)

    def test_a_name_twice(self, tmp_path):
        """S25."""
        node = PKI.node()
        dialogue, kind, nonce = self.begin(tmp_path, node)
        part = json.dumps(self.ecdsa(node.key, nonce))
        with pytest.raises(InvalidRequest):
            advance(dialogue, f'{{"{kind}": {part}, "{kind}": {part}}}'.encode())


class TestProver:
    def test_files_are_read_for_each_attempt(self, tmp_path):
        """A renewed certificate needs no restart."""
        first, second = PKI.node("one"), PKI.node("two")
        proof = prover(tmp_path, first)
        before = proof.fingerprint()
        assert "subject:cn:one" in values(attest(verifier(tmp_path), proof))
        second.files(tmp_path)
        assert proof.fingerprint() not in {"", before}
        assert "subject:cn:two" in values(attest(verifier(tmp_path), proof))

    def test_intermediates_may_stand_behind_the_certificate(self, tmp_path):
        node = PKI.node(ca=PKI.intermediate())
        settings = Node(node.key, node.leaf).files(tmp_path)
        write_certificates(tmp_path / "node-certificate.pem", node.leaf, *node.intermediates)
        assert attest(verifier(tmp_path), X509PopProver(ProverSettings(**settings)))

    def test_a_missing_file_is_named(self, tmp_path):
        proof = prover(tmp_path, PKI.node())
        (tmp_path / "node-key.pem").unlink()
        assert proof.fingerprint() == ""
        with pytest.raises(ConfigError, match=r"private_key_path.*node-key\.pem"):
            next(proof.prove())

    def test_a_key_of_another_certificate(self, tmp_path):
        proof = prover(tmp_path, PKI.node())
        write_key(tmp_path / "node-key.pem", generate(KeyKind.EC_P256))
        with pytest.raises(ConfigError, match="is not the key of the first certificate"):
            next(proof.prove())

    def test_a_key_that_everybody_can_read(self, tmp_path):
        proof = prover(tmp_path, PKI.node())
        (tmp_path / "node-key.pem").chmod(0o644)
        with pytest.raises(ConfigError, match="chmod 0600"):
            next(proof.prove())
        (tmp_path / "node-key.pem").chmod(0o640)
        assert next(proof.prove())

    @pytest.mark.parametrize("name", ["private_key_path", "certificate_path"])
    def test_both_files_are_required(self, name):
        settings = {"private_key_path": "a", "certificate_path": "b", name: ""}
        with pytest.raises(ConfigError, match=name):
            ProverSettings(**settings)

    @pytest.mark.parametrize(
        "challenge",
        [
            b"",
            b"{}",
            b"null",
            b'{"ecdsa_signature":{}}',
            b'{"ecdsa_signature":{"nonce":"AAAA"}}',
            b'{"rsa_signature":{}}',
        ],
    )
    def test_an_odd_challenge_is_refused(self, tmp_path, challenge):
        """The agent signs nothing that is not a nonce of x509pop."""
        steps = prover(tmp_path, PKI.node()).prove()
        next(steps)
        with pytest.raises(IdentityError):
            steps.send(challenge)

    def test_it_answers_once(self, tmp_path):
        steps = prover(tmp_path, PKI.node()).prove()
        dialogue = verifier(tmp_path).verify(next(steps), DIGEST)
        steps.send(advance(dialogue).data)
        with pytest.raises(PreconditionFailed, match="second time"):
            steps.send(b"{}")

    def test_its_own_nonce_differs_each_time(self, tmp_path):
        """It never signs what only the server chose."""
        challenge = json.dumps({"ecdsa_signature": {"nonce": base64.b64encode(b"n" * 32).decode()}}).encode()
        nonces = set()
        for _ in range(2):
            steps = prover(tmp_path, PKI.node()).prove()
            next(steps)
            nonces.add(json.loads(steps.send(challenge))["ecdsa_signature"]["nonce"])
        assert len(nonces) == 2
