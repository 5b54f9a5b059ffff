"""Join tokens as values (architecture A18; S35, S36)."""

import hashlib

import pytest

from identity_server.domain import join_tokens
from identity_server.domain.join_tokens import JoinToken, check_redeemable
from spiffe_core.errors import InvalidRequest

ME, OTHER = b"m" * 32, b"o" * 32


def token(**over):
    return JoinToken(**{"digest": b"d" * 32, "alias_path": "", "expires_at": 1000, **over})


@pytest.mark.parametrize("text", ["a", "A-z_0.9", "0b0e45a8-7b7d-4a3e-b7a3-25bbd0ba3f1a", "x" * 256, "..."])
def test_a_token_is_one_path_segment(text):
    assert join_tokens.check_token(text) == text
    assert join_tokens.agent_path(text) == f"/spire/agent/join_token/{text}"


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a/b", "../server", "a b", "a%2f", "tök", "a\n", "a\0", "x" * 257, "x" * 10_240]
)
def test_what_could_change_the_agents_id_is_refused_without_repeating_it(text):
    """S35: `/`, `..`, 10 KB and the like are refused at creation."""
    with pytest.raises(InvalidRequest, match="invalid join token") as caught:
        join_tokens.check_token(text)
    assert caught.value.field == "token"
    assert len(text) < 3 or text not in caught.value.public


@pytest.mark.parametrize("ttl", [0, -1, 2**31])
def test_a_ttl_out_of_range_is_refused(ttl):
    with pytest.raises(InvalidRequest) as caught:
        join_tokens.check_ttl(ttl)
    assert caught.value.field == "ttl"


@pytest.mark.parametrize("ttl", [1, 600, 2**31 - 1])
def test_a_ttl_in_range_is_kept(ttl):
    assert join_tokens.check_ttl(ttl) == ttl


def test_only_the_digest_is_stored():
    assert join_tokens.digest_of("secret") == join_tokens.digest_of(b"secret") == hashlib.sha256(b"secret").digest()


def test_an_unknown_token_cannot_be_redeemed():
    with pytest.raises(InvalidRequest, match="does not exist or has already been used"):
        check_redeemable(None, ME, 0)


@pytest.mark.parametrize(("now", "good"), [(999, True), (1000, False), (1001, False)])
def test_an_unredeemed_token_lives_until_it_expires(now, good):
    if good:
        assert check_redeemable(token(), ME, now)
    else:
        with pytest.raises(InvalidRequest, match="join token expired"):
            check_redeemable(token(), ME, now)


@pytest.mark.parametrize(("now", "good"), [(100, True), (399, True), (400, False)])
def test_the_key_that_redeemed_it_may_repeat_for_five_minutes(now, good):
    """A18: a lost reply bricks nothing."""
    redeemed = token(redeemed_key=ME, redeemed_at=100)
    if good:
        assert check_redeemable(redeemed, ME, now) is redeemed
    else:
        with pytest.raises(InvalidRequest, match="already been used"):
            check_redeemable(redeemed, ME, now)


def test_any_other_key_has_lost():
    with pytest.raises(InvalidRequest, match="already been used"):
        check_redeemable(token(redeemed_key=ME, redeemed_at=100), OTHER, 101)


def test_a_repeat_outlives_the_tokens_own_expiry():
    redeemed = token(expires_at=101, redeemed_key=ME, redeemed_at=100)
    assert check_redeemable(redeemed, ME, 200) is redeemed
