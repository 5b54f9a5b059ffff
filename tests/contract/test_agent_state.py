"""The agent's state on disk: round trips, and every way a file can be wrong (R3, R8 to R11, R13, S70, S71)."""

import json
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node_agent.domain.node_state import NodeState
from node_agent.state_dir import FILE_NAME, MAX_BYTES, DamagedState, StateDirectory, dump_state, parse_state
from spiffe_core.bundle import X509Authority
from spiffe_core.crypto.keys import KeyKind, generate, to_pkcs8
from spiffe_core.errors import ConfigError, Conflict, CorruptState
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from tests.builders import TD
from tests.doubles.clock import START

CA = SpiffeTestCA("example.org", now=START)
OTHER = SpiffeTestCA("example.org", now=START)
AGENT = CA.issue("spiffe://example.org/spire/agent/join_token/t1")
BUNDLE = CA.bundle(OTHER, sequence=7).with_x509_tainted(X509Authority(OTHER.der).key_id)
FULL = NodeState(
    TD,
    svid=AGENT.svid,
    renew_at=datetime(2030, 1, 1, 0, 30, 0, 500_000, UTC),
    reattestable=True,
    pending_key=to_pkcs8(generate(KeyKind.EC_P256)),
    bundle=BUNDLE,
)


@pytest.fixture
def directory(tmp_path):
    opened = StateDirectory.open(tmp_path / "agent")
    yield opened
    opened.close()


def write(directory, data, mode=0o600):
    directory.path.write_bytes(data)
    directory.path.chmod(mode)


STATES = {
    "full": FULL,
    "new": NodeState(TD),
    "joining": NodeState(TD, pending_key=FULL.pending_key, bundle=BUNDLE),
    "joined": replace(FULL, pending_key=None, reattestable=False),
}


@pytest.mark.parametrize("name", STATES)
def test_what_is_saved_is_what_is_loaded(directory, name):
    directory.save(STATES[name])
    assert directory.load(TD) == STATES[name]


def test_an_agent_that_never_ran_has_an_empty_state(directory):
    assert directory.load(TD) == NodeState(TD)


def test_the_taint_of_an_authority_survives(directory):
    directory.save(FULL)
    assert [one.tainted for one in directory.load(TD).bundle.x509_authorities] == [False, True]


def test_directory_and_file_are_private_whatever_the_umask(tmp_path):
    """S70."""
    before = os.umask(0)
    try:
        opened = StateDirectory.open(tmp_path / "agent")
        opened.save(FULL)
        opened.save(FULL)
    finally:
        os.umask(before)
    assert stat.S_IMODE(opened.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(opened.path.stat().st_mode) == 0o600
    assert sorted(one.name for one in opened.path.parent.iterdir()) == [FILE_NAME, "lock"]
    opened.close()


def test_a_second_agent_on_the_directory_is_refused(directory):
    with pytest.raises(Conflict, match=f"in use by process {os.getpid()}"):
        StateDirectory.open(directory.path.parent)


def test_the_directory_is_free_again_after_close(directory):
    directory.close()
    StateDirectory.open(directory.path.parent).close()


def test_what_a_killed_write_left_behind_is_removed(directory):
    """R3."""
    directory.close()
    leftover = directory.path.with_name(f".{FILE_NAME}.{'0' * 16}.tmp")
    leftover.write_bytes(b"half a key")
    StateDirectory.open(directory.path.parent).close()
    assert not leftover.exists()


def test_clearing_leaves_nothing(directory):
    """A19: a banned agent deletes what is stored."""
    directory.save(FULL)
    directory.clear()
    directory.clear()
    assert not directory.path.exists()
    assert directory.load(TD) == NodeState(TD)


def document():
    return json.loads(dump_state(FULL))


def spoiled(**changes):
    return json.dumps(document() | changes).encode()


def without(key):
    found = document()
    del found[key]
    return json.dumps(found).encode()


CORRUPT = {
    "empty": b"",
    "truncated": dump_state(FULL)[:-30],
    "garbage": os.urandom(500),
    "zeros": bytes(2000),
    "a list": b"[]",
    "no version": without("version"),
    "version as text": spoiled(version="1"),
    "version true": spoiled(version=True),
    "version zero": spoiled(version=0),
    "svid as text": spoiled(svid="x"),
    "svid without key": spoiled(svid={"chain": [], "renew_at": 0}),
    "svid with an empty chain": spoiled(svid=document()["svid"] | {"chain": []}),
    "svid whose chain is no certificate": spoiled(svid=document()["svid"] | {"chain": ["AAAA"]}),
    "svid key that is no key": spoiled(svid=document()["svid"] | {"key": "AAAA"}),
    "key not base64": spoiled(pending_key="not base64!"),
    "pending key that is no key": spoiled(pending_key="AAAA"),
    "bundle of text": spoiled(bundle="x"),
    "authority that is no certificate": spoiled(
        bundle=document()["bundle"] | {"x509_authorities": [{"der": "AAAA", "tainted": False}]}
    ),
    "sequence negative": spoiled(bundle=document()["bundle"] | {"sequence": -1}),
    "renewal time beyond the calendar": spoiled(svid=document()["svid"] | {"renew_at": 1e300}),
    "reattestable as text": spoiled(reattestable="yes"),
    "deeply nested": b"[" * 100_000,
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_file_is_refused_with_its_path_and_left_alone(directory, name):
    """R8: never a silent new identity."""
    write(directory, CORRUPT[name])
    with pytest.raises(CorruptState, match=str(directory.path)) as caught:
        directory.load(TD)
    assert "move it away" in caught.value.public
    assert directory.path.read_bytes() == CORRUPT[name]


def test_a_refusal_quotes_no_key(directory):
    write(directory, spoiled(reattestable=1))
    with pytest.raises(CorruptState) as caught:
        directory.load(TD)
    for secret in (document()["svid"]["key"], document()["pending_key"]):
        assert secret not in caught.value.public
        assert secret not in repr(caught.value.facts)


def test_a_file_of_a_newer_release_is_refused_and_left_alone(directory):
    """R9."""
    write(directory, spoiled(version=2))
    with pytest.raises(CorruptState, match="newer release"):
        directory.load(TD)
    assert json.loads(directory.path.read_bytes())["version"] == 2


def test_a_file_of_another_trust_domain_is_refused(directory):
    directory.save(FULL)
    with pytest.raises(CorruptState, match="another trust domain"):
        directory.load(TrustDomain("other.test"))


def test_an_svid_of_another_trust_domain_is_refused(directory):
    foreign = SpiffeTestCA("other.test").issue("spiffe://other.test/spire/agent/x")
    directory.save(replace(FULL, svid=foreign.svid))
    with pytest.raises(CorruptState):
        directory.load(TD)


def test_a_certificate_that_does_not_match_its_key_counts_as_lost(directory, caplog):
    """R10: detected at load; bundle and pending key are kept."""
    stranger = to_pkcs8(generate(KeyKind.EC_P256))
    directory.save(replace(FULL, svid=replace(FULL.svid, key=stranger)))
    loaded = directory.load(TD)
    assert loaded == replace(FULL, svid=None, renew_at=None)
    assert "counts as lost" in caplog.text


def test_a_file_others_can_read_is_refused(directory):
    """R13, S70: somebody may have copied the key."""
    write(directory, dump_state(FULL), mode=0o644)
    with pytest.raises(CorruptState, match="0644"):
        directory.load(TD)


def test_a_link_in_place_of_the_file_is_refused_and_its_target_untouched(directory, tmp_path):
    """S71."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    target.chmod(0o600)
    directory.path.symlink_to(target)
    for touch in (lambda: directory.load(TD), lambda: directory.save(FULL)):
        with pytest.raises(CorruptState, match="symbolic link"):
            touch()
    assert target.read_bytes() == b"precious"


def test_a_hard_link_is_refused(directory, tmp_path):
    """S71."""
    directory.save(FULL)
    os.link(directory.path, tmp_path / "second")
    with pytest.raises(CorruptState, match="second name"):
        directory.load(TD)


def test_a_directory_others_can_enter_is_refused(tmp_path):
    """R13."""
    (tmp_path / "agent").mkdir(mode=0o755)
    (tmp_path / "agent").chmod(0o755)
    with pytest.raises(ConfigError, match="0755"):
        StateDirectory.open(tmp_path / "agent")


def test_a_file_of_absurd_size_is_refused_unread(directory):
    write(directory, b"")
    os.truncate(directory.path, MAX_BYTES + 1)
    with pytest.raises(CorruptState, match="larger than"):
        directory.load(TD)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_of_bytes_is_ever_a_crash_or_another_identity(tmp_path, data):
    """R8: a mutated file gives the same state, a state without its SVID, or CorruptState."""
    raw = bytearray(dump_state(FULL))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse_state(bytes(raw), TD, tmp_path / FILE_NAME)
    except CorruptState:
        return
    assert found.svid is None or found.svid.spiffe_id == FULL.svid.spiffe_id
    assert found.trust_domain == TD


def test_a_renewal_time_keeps_its_fraction(directory):
    directory.save(FULL)
    assert abs(directory.load(TD).renew_at - FULL.renew_at) < timedelta(milliseconds=1)


@pytest.mark.parametrize("name", ["empty", "truncated", "garbage"])
def test_a_damaged_file_can_be_set_aside(directory, name, caplog):
    """R8: kept beside, said aloud, and nothing is known; the next damage takes its place."""
    damaged = directory.path.with_name("agent-state.json.damaged")
    for content in (b"older", CORRUPT[name]):
        write(directory, content)
        with pytest.raises(DamagedState):
            directory.load(TD)
        assert directory.set_aside(TD) == NodeState(TD)
        assert damaged.read_bytes() == content
        assert not directory.path.exists()
    assert damaged.stat().st_mode & 0o777 == 0o600
    assert "joins anew" in caplog.text


def test_what_is_set_aside_is_erased_with_the_rest(directory):
    """A19: it holds keys too."""
    write(directory, b"{")
    directory.set_aside(TD)
    directory.save(FULL)
    directory.clear()
    assert [path.name for path in directory.path.parent.iterdir()] == ["lock"]


@pytest.mark.parametrize("change", [{"version": 2}, {"trust_domain": "other.test"}])
def test_a_file_that_is_not_for_this_agent_is_not_damaged(directory, change):
    """R9: refused, and never set aside."""
    write(directory, spoiled(**change))
    with pytest.raises(CorruptState) as caught:
        directory.load(TD)
    assert not isinstance(caught.value, DamagedState)


@pytest.fixture
def keyless(tmp_path):
    opened = StateDirectory.open(tmp_path / "agent", keys=False)
    yield opened
    opened.close()


@pytest.mark.parametrize("name", STATES)
def test_without_keys_on_disk_only_the_bundle_is_kept(keyless, name):
    """The memory key manager: the next life attests anew, and recognises the server."""
    keyless.save(STATES[name])
    expected = NodeState(TD, reattestable=STATES[name].reattestable, bundle=STATES[name].bundle)
    assert keyless.load(TD) == expected
    document = json.loads(keyless.path.read_bytes())
    assert not {"svid", "pending_key"} & document.keys()


def test_keys_of_an_earlier_life_are_erased_from_disk(keyless):
    """Who turns to memory leaves nothing behind: neither in the state, nor in one that cannot be read."""
    write(keyless, dump_state(FULL))
    assert keyless.load(TD) == NodeState(TD, reattestable=True, bundle=BUNDLE)
    secret = json.loads(dump_state(FULL))["svid"]["key"]
    assert secret not in keyless.path.read_text()
    write(keyless, dump_state(FULL)[:-20])
    with pytest.raises(DamagedState):
        keyless.load(TD)
    assert keyless.set_aside(TD) == NodeState(TD)
    assert [path.name for path in keyless.path.parent.iterdir() if secret in path.read_text()] == []
