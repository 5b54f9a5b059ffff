"""Join tokens: payload in, agent path out, no challenge (architecture A18, spire_wire section 7)."""

import pytest

from attestors.api import Attested, NodeProver, NodeVerifier, advance
from attestors.node.join_token import MAX_TOKEN_BYTES, JoinTokenProver, JoinTokenVerifier, NoSettings, ProverPorts
from spiffe_core.errors import ConfigError, InvalidRequest, PreconditionFailed

KEY = b"k" * 32


def prover(token):
    return JoinTokenProver(NoSettings(), ProverPorts(token=lambda: token))


def test_prover_and_verifier_agree_on_the_payload():
    payload = next(prover("8a6b1c6e-77aa-4c9b-8b7f-0f7f3a1a2b3c\n").prove())
    verdict = advance(JoinTokenVerifier().verify(payload, KEY))
    assert Attested("/spire/agent/join_token/8a6b1c6e-77aa-4c9b-8b7f-0f7f3a1a2b3c", frozenset(), False) == verdict


def test_both_halves_follow_the_protocols():
    assert isinstance(prover("x"), NodeProver)
    assert isinstance(JoinTokenVerifier(), NodeVerifier)


def test_the_verifier_needs_no_thread_and_leaves_redeeming_to_the_use_case():
    assert JoinTokenVerifier.blocking is False
    assert JoinTokenVerifier.redeems_token is True


@pytest.mark.parametrize("token", ["a", "A.b_c-9", "...", "x" * MAX_TOKEN_BYTES])
def test_a_token_is_any_path_segment(token):
    assert f"/spire/agent/join_token/{token}" == advance(JoinTokenVerifier().verify(token.encode(), KEY)).agent_path


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b".",
        b"..",
        b"a/b",
        b"a b",
        b"a\n",
        b"\xff",
        b"\xc3\xa9",
        b"a\x00",
        b"x" * (MAX_TOKEN_BYTES + 1),
        b"x" * 9_999_999,
    ],
)
def test_what_cannot_be_a_token_reads_like_an_unknown_token(payload):
    with pytest.raises(InvalidRequest, match="join token does not exist or has already been used") as refusal:
        advance(JoinTokenVerifier().verify(payload, KEY))
    assert refusal.value.field == "params.data.payload"


def test_a_challenge_is_not_part_of_the_protocol():
    dialogue = prover("t0k3n").prove()
    next(dialogue)
    with pytest.raises(PreconditionFailed):
        dialogue.send(b"nonce")


def test_the_token_is_read_at_each_attempt():
    tokens = iter(["one", "two"])
    twice = JoinTokenProver(NoSettings(), ProverPorts(token=lambda: next(tokens)))
    assert [next(twice.prove()), next(twice.prove())] == [b"one", b"two"]


def test_a_file_that_holds_no_token_is_refused_without_being_quoted():
    with pytest.raises(ConfigError, match="token generate") as refusal:
        next(prover("not a token: secret!").prove())
    assert "secret" not in str(refusal.value)
