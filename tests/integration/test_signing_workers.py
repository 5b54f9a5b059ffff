"""Signing workers: faster, and never anything else (issue 3, B2; S20, S27, S39, S72, N-C-07)."""

import asyncio
import os
import resource
import signal
import socket
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import uvloop
from cryptography import x509

from identity_server.domain.issuance import parent_of
from identity_server.domain.leaf_order import LeafOrder, SigningKey
from identity_server.domain.profiles import Profile
from identity_server.signing import frames, pool
from identity_server.signing.pool import SigningWorkers
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import ConfigError
from spiffe_core.runtime.offload import Offload
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA, trusting
from tests.doubles.live_server import entry, live_server, sign, wanted

SECONDS = 60.0
KEYS = [generate(KeyKind.EC_P256) for _ in range(4)]
CSRS = [build_csr(key, spiffe_id=None) for key in KEYS]


async def until(true):
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
async def live(monkeypatch):
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.05)
    async with live_server(ca={"signing_workers": 1}, ratelimit={"signing": False}) as server:
        await until(lambda: server.server.workers.ready == 1)
        yield server


async def hundred(live):
    agent = await live.join()
    ids = await live.entries(*[entry(f"/w/{n}", agent.path, selectors=(("a", f"b:{n}"),)) for n in range(100)])
    return agent, [wanted(entry_id, csr=CSRS[n % 4]) for n, entry_id in enumerate(ids)]


def check(live, results):
    """Every answer is the entry's ID for the very key that was sent, and verifies."""
    for number, result in enumerate(results):
        assert result.status.code == 0, result.status.message
        found = verify_x509_svid(list(result.svid.cert_chain), live.state.bundles.get, now=live.clock.now())
        assert str(found.spiffe_id) == f"spiffe://example.org/w/{number}"
        leaf = x509.load_der_x509_certificate(result.svid.cert_chain[0])
        assert spki_der(leaf.public_key()) == spki_der(KEYS[number % 4].public_key())
        assert result.svid.expires_at == int(leaf.not_valid_after_utc.timestamp())


async def signed_by_workers(live, agent, items):
    """Batches until the workers had a share in one, checked; so it is on a machine busy with other work."""
    before = live.server.workers.signed
    async with asyncio.timeout(SECONDS):
        while live.server.workers.signed == before:
            check(live, await sign(agent, *items))


async def test_a_batch_is_signed_by_server_and_worker_together(live):
    """S20, S21: each item has the ID of its entry and the key of its request, whoever signed; all are audited."""
    agent, items = await hundred(live)
    await signed_by_workers(live, agent, items)
    results = await sign(agent, *items)
    await live.server.close()
    audit = Path(live.server.settings.audit.file).read_text()
    serials = [str(x509.load_der_x509_certificate(r.svid.cert_chain[0]).serial_number) for r in results]
    assert len(set(serials)) == 100
    assert all(serial in audit for serial in serials)


async def test_what_a_worker_refuses_is_put_into_words_by_the_server(live):
    """S27: bad items among good ones, at places that go to the worker and places that do not."""
    agent, items = await hundred(live)
    await signed_by_workers(live, agent, items)
    bad = {0: wanted(items[0].entry_id, csr=b"no"), 3: wanted("strange", csr=CSRS[0]), 99: wanted("", csr=CSRS[0])}
    spoiled = bytearray(CSRS[1])
    spoiled[-1] ^= 1
    bad[50] = wanted(items[50].entry_id, csr=bytes(spoiled))
    results = await sign(agent, *(bad.get(n, item) for n, item in enumerate(items)))
    codes = {n: result.status.code for n, result in enumerate(results) if result.status.code}
    assert codes == {0: 3, 3: 5, 50: 3, 99: 3}
    assert "does not verify" in results[50].status.message


async def test_a_worker_without_memory_costs_no_answer_and_is_replaced(live):
    """R15: RLIMIT_AS at what it has; the server signs by itself, lives, and has a worker that signs again soon."""
    agent, items = await hundred(live)
    await signed_by_workers(live, agent, items)
    (pid,) = live.server.workers.pids
    resource.prlimit(pid, resource.RLIMIT_AS, (1, 1))
    csr = build_csr(generate(KeyKind.RSA_2048), spiffe_id=None)  # large ones: half a megabyte must be read at once
    large = [replaced(item, csr) for item in items * 5]
    async with asyncio.timeout(SECONDS):
        while live.server.workers.pids == (pid,):
            assert {result.status.code for result in await sign(agent, *large)} == {0}
    await until(lambda: live.server.workers.ready == 1)
    assert live.server.workers.pids != (pid,)
    await signed_by_workers(live, agent, items)


def replaced(item, csr):
    """The same entry asked for with another request."""
    return wanted(item.entry_id, csr=csr)


async def test_killing_the_worker_costs_no_answer_and_it_comes_back(live):
    """kill -9 under load: the server signs by itself, and has a worker again soon."""
    agent, items = await hundred(live)
    await signed_by_workers(live, agent, items)
    for _ in range(3):
        await until(lambda: live.server.workers.ready == 1)
        (pid,) = live.server.workers.pids
        batch = asyncio.ensure_future(sign(agent, *items))
        os.kill(pid, signal.SIGKILL)
        check(live, await batch)
        check(live, await sign(agent, *items))
        await until(lambda pid=pid: live.server.workers.pids not in {(), (pid,)})
    await signed_by_workers(live, agent, items)


async def test_a_worker_that_hangs_is_ended_and_its_work_done_here(live, monkeypatch):
    agent, items = await hundred(live)
    await signed_by_workers(live, agent, items)
    monkeypatch.setattr(pool, "ANSWER_SECONDS", 0.2)
    (pid,) = live.server.workers.pids
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(SECONDS):
        while live.server.workers.pids == (pid,):
            check(live, await sign(agent, *items))
    await until(lambda: live.server.workers.ready == 1)


async def test_a_rotated_authority_signs_at_once_wherever_it_is_signed(live):
    """The worker is told of the new key with the first order after the rotation; the old one signs nothing more."""
    agent, items = await hundred(live)
    await signed_by_workers(live, agent, items)
    standing = live.server.authorities.issuer.standing()
    prepared = await live.server.authorities.prepare("x509", "test")
    live.clock.move(11)
    await live.server.authorities.activate("x509", prepared.authority_id, "test")
    assert live.server.authorities.issuer.standing() is not standing
    before = live.server.workers.signed
    async with asyncio.timeout(SECONDS):
        while live.server.workers.signed == before:
            results = await sign(agent, *items)
            check(live, results)
            for result in results:
                leaf = x509.load_der_x509_certificate(result.svid.cert_chain[0])
                above = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
                assert above.hex() == prepared.authority_id


async def test_the_key_is_in_no_argument_and_no_environment_and_no_worker_outlives_the_server(live):
    """S72: what ps shows, and what is left."""
    (pid,) = live.server.workers.pids
    process = Path(f"/proc/{pid}")
    words = process.joinpath("cmdline").read_bytes().split(b"\0")
    assert words[1:4] == [b"-I", b"-m", b"identity_server.signing.worker"]
    assert words[4].isdigit()
    assert words[5:] == [b""]
    assert process.joinpath("environ").read_bytes() == b""
    await live.server.workers.close()
    assert not process.exists()


async def test_a_worker_ends_when_the_server_is_gone():
    ours, theirs = socket.socketpair()
    with theirs:
        process = pool._start(theirs.fileno())
    ours.close()
    assert await asyncio.to_thread(process.wait, SECONDS) == 0


def key_of(ca, **parent):
    return SigningKey(ca.der, replace(parent_of(ca.der), **parent), ca.key)


def order(ca, path="/web", **over):
    now = int(ca.now.timestamp())
    return replace(LeafOrder(Profile.WORKLOAD, SpiffeId(ca.trust_domain, path), 3600, now, 7), **over)


@pytest.fixture
async def workers():
    made = SigningWorkers(1, SystemClock())
    made.start()
    await until(lambda: made.ready == 1)
    yield made
    await made.close()


async def test_a_worker_signs_what_was_ordered_and_lints_it(workers):
    """S39, N-C-07, S37: taken keys, reserved names and strangers' signatures are refused there as well."""
    ca = SpiffeTestCA("example.org")
    good, names = order(ca), order(ca, "/dns", dns_names=("web.example.org",), serial=8)
    taken = frozenset({x509.SubjectKeyIdentifier.from_public_key(KEYS[1].public_key()).digest.hex()})
    wrong = bytearray(CSRS[0])
    wrong[-1] ^= 1
    orders = [
        (good, CSRS[0]),
        (names, CSRS[2]),
        (good, CSRS[1]),
        (order(ca, "/spire/agent/x"), CSRS[0]),
        (good, bytes(wrong)),
        (good, build_csr(ca.key, spiffe_id=None)),
        (order(ca, serial=2**128), CSRS[0]),
    ]
    leaves = await workers.sign(key_of(ca), taken, orders)
    assert [leaf is not None for leaf in leaves] == [True, True, False, False, False, False, False]
    for leaf, path in zip(leaves, ("/web", "/dns"), strict=False):
        found = verify_x509_svid([leaf.der], trusting(ca.bundle()), now=ca.now)
        assert found.spiffe_id.path == path
        assert int(found.not_after.timestamp()) == leaf.not_after


async def test_a_worker_lets_no_leaf_outlive_what_the_authority_may(workers):
    """S37: the authority's end may lie before its certificate's."""
    ca = SpiffeTestCA("example.org")
    end = int(ca.now.timestamp()) + 100
    (leaf,) = await workers.sign(key_of(ca, not_after=end), frozenset(), [(order(ca), CSRS[0])])
    assert leaf.not_after == end


async def test_a_worker_lives_on_when_the_threads_of_its_pool_have_ended(monkeypatch):
    """prctl(2) PR_SET_PDEATHSIG: the thread that starts a process takes it along; an idle pool's threads end."""
    monkeypatch.setattr(pool, "Offload", partial(Offload, idle_seconds=1.5))
    made = SigningWorkers(1, SystemClock(), first_pause=SECONDS)
    made.start()
    try:
        await until(lambda: made.ready == 1)
        await until(lambda: not any(one.name.startswith("signing-") for one in threading.enumerate()))
        ca = SpiffeTestCA("example.org")
        (leaf,) = await made.sign(key_of(ca), frozenset(), [(order(ca), CSRS[0])])
        assert leaf is not None
    finally:
        await made.close()


def test_orders_to_a_worker_that_just_died_come_back_unsigned_on_the_daemons_own_loop():
    """R39: uvloop closes a transport at the first write that fails, and a further one would raise."""

    async def kills():
        made, ca = SigningWorkers(1, SystemClock(), first_pause=0.01), SpiffeTestCA("example.org")
        key, orders = key_of(ca), [(order(ca), CSRS[0])] * 20
        made.start()
        try:
            for _ in range(5):
                await until(lambda: made.ready == 1)
                calls = []
                os.kill(made.pids[0], signal.SIGKILL)
                while made.pids:  # one order in each round of the loop: one meets the transport as it closes
                    calls.append(asyncio.ensure_future(made.sign(key, frozenset(), orders)))
                    await asyncio.sleep(0)
                assert None in await asyncio.gather(*calls)
        finally:
            await made.close()

    uvloop.run(kills())


async def test_two_authorities_in_turn_have_their_own_signatures(workers):
    first, second = SpiffeTestCA("example.org"), SpiffeTestCA("example.org")
    for ca in (first, second, first):
        (leaf,) = await workers.sign(key_of(ca), frozenset(), [(order(ca), CSRS[0])])
        verify_x509_svid([leaf.der], trusting(ca.bundle()), now=ca.now)


async def test_without_a_worker_nothing_is_signed_and_the_caller_is_told():
    ca = SpiffeTestCA("example.org")
    assert await SigningWorkers(0, SystemClock()).sign(key_of(ca), frozenset(), [(order(ca), CSRS[0])]) is None


@pytest.mark.parametrize("prefix", [(2**32 - 1, 0), (frames.MAX_FRAME_BYTES + 1, 0), (1, 2)])
def test_frames_of_impossible_sizes_are_refused(prefix):
    with pytest.raises(ValueError, match="lengths"):
        frames.sizes(frames.PREFIX.pack(*prefix))


def test_frames_are_read_back():
    made = frames.encode({"number": 3}, (b"", b"abc"))
    body, head = frames.sizes(made[: frames.PREFIX.size])
    assert frames.decode(made[frames.PREFIX.size :], head) == ({"number": 3}, (b"", b"abc"))
    with pytest.raises(ValueError, match="add up"):
        frames.decode(made[frames.PREFIX.size : -1], head)
    assert body == len(made) - frames.PREFIX.size


async def test_keys_that_stay_in_a_token_have_no_workers():
    with pytest.raises(ConfigError, match="signing_workers"):
        async with live_server(
            ca={
                "signing_workers": 1,
                "key_manager": "pkcs11",
                "pkcs11": {"module": "/x.so", "token": "a", "pin_file": "/p"},
            }
        ):
            pass
