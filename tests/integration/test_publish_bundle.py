"""The bundle goes to every place: at the start, on each change, after failures, the newest only (issue 6, item 6)."""

import asyncio
import contextlib
import json
import logging
import os
import stat

import pytest

from identity_server.domain.publication import BundleFormat, Outcome, publication_of
from identity_server.publish.file import FileTarget
from identity_server.services.publish_bundle import LOOK_AFTER_SECONDS, PublishBundle
from identity_server.settings import from_mapping
from identity_server.settings_publish import PublishFileSection
from spiffe_core.bundle_document import load_bundle
from spiffe_core.errors import ConfigError, CorruptState, Kind, PreconditionFailed, Unavailable
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb
from tests.authority import SpiffeTestCA
from tests.doubles.clock import FakeClock
from tests.doubles.live_server import live_server
from tests.doubles.publish_target import PlaceInMemory

TD = TrustDomain("example.org")
CA = SpiffeTestCA("example.org")


def bundle(sequence):
    return CA.bundle(sequence=sequence)


class Publishing:
    """A bundle that changes, and places it is published to, with pauses of a moment."""

    def __init__(self, *places, first=1):
        self.watch = Watch(bundle(first) if first else None)
        self.clock, self.seen, self._news = FakeClock(), [], asyncio.Event()
        self.service = PublishBundle(
            watch=self.watch,
            newest=lambda: self.watch.value,
            orders=[place.order() for place in places],
            clock=self.clock,
            jitter=lambda: 0.0,
            observe=self._observe,
            pause=lambda _failures, _jitter: 0.0,
        )

    @contextlib.asynccontextmanager
    async def running(self):
        async with Supervisor() as tasks:
            tasks.start(self.service.keep_up(), "publishing")
            yield self
            tasks.stop()

    def _observe(self, name, _seconds, failure):
        self.seen.append((name, failure))
        self._news.set()

    async def tried(self, count):
        """Wait until so many tries are over and what they came to is kept."""
        async with asyncio.timeout(20):
            while len(self.seen) < count:
                self._news.clear()
                await self._news.wait()

    def states(self):
        return {one.name: one for one in self.service.states()}


async def test_it_is_published_at_the_start_and_on_each_change():
    """Without a change nothing is sent twice."""
    place = PlaceInMemory()
    async with Publishing(place).running() as rig:
        await rig.tried(1)
        rig.watch.publish(bundle(2))
        await rig.tried(2)
        rig.watch.publish(rig.watch.value)
        await asyncio.sleep(0)
    assert [one.sequence for one in place.written] == [1, 2]
    assert rig.states()["memory"].sequence == 2


async def test_what_changed_while_a_place_was_busy_is_skipped_and_the_newest_is_sent():
    """Coalesced: ten changes are one more write."""
    place = PlaceInMemory()
    place.open.clear()
    async with Publishing(place).running() as rig:
        await asyncio.to_thread(place.entered.wait, 20)
        for sequence in range(2, 12):
            rig.watch.publish(bundle(sequence))
        place.open.set()
        await place.until(lambda one: one.written and one.written[-1].sequence == 11)
    assert [one.sequence for one in place.written] == [1, 11]


async def test_a_place_that_hangs_holds_up_no_other():
    """Each has a thread and a task of its own."""
    slow, quick = PlaceInMemory("slow"), PlaceInMemory("quick")
    slow.open.clear()
    async with Publishing(slow, quick).running() as rig:
        for sequence in (2, 3, 4):
            await quick.until(lambda one, count=sequence - 1: len(one.written) == count)
            rig.watch.publish(bundle(sequence))
        await quick.until(lambda one: len(one.written) == 4)
        assert not slow.written
        slow.open.set()


async def test_a_failure_is_tried_again_and_told_once(caplog):
    """The log says it once, health as long as it lasts, and the numbers each time."""
    place = PlaceInMemory()
    place.troubles = [Unavailable("away"), Unavailable("away"), PreconditionFailed("newer")]
    with caplog.at_level(logging.INFO, "identity_server.services.publish_bundle"):
        async with Publishing(place).running() as rig:
            await rig.tried(4)
    assert [one.levelname for one in caplog.records] == ["WARNING", "WARNING", "INFO"]
    assert [kind for _, kind in rig.seen] == [Kind.UNAVAILABLE, Kind.UNAVAILABLE, Kind.PRECONDITION, None]
    assert rig.states()["memory"].error == ""


async def test_how_long_a_place_lacks_the_newest_bundle_is_told():
    """behind_seconds begins with the first failure and ends with the write."""
    place = PlaceInMemory()
    place.troubles = [Unavailable("away")]
    rig = Publishing(place)
    held = asyncio.Event()
    rig.service._pause = lambda _failures, _jitter: held.set() or 0.0
    async with rig.running():
        await held.wait()
        rig.clock.advance(30)
        state = rig.states()["memory"]
        assert (state.error, state.behind_seconds, state.sequence) == ("away", 30.0, None)
        await rig.tried(2)
        assert rig.states()["memory"].behind_seconds == 0.0


async def test_an_empty_bundle_and_none_at_all_are_never_published():
    """A place that held keys would tell everybody to trust nobody."""
    place = PlaceInMemory()
    async with Publishing(place, first=0).running() as rig:
        rig.watch.publish(bundle(1).without_x509_authority(CA.bundle().x509_authorities[0].key_id))
        await asyncio.sleep(0)
        rig.watch.publish(bundle(3))
        await place.until(lambda one: one.written)
    assert [one.sequence for one in place.written] == [3]


async def test_the_place_is_looked_after_now_and_then_though_nothing_changed():
    """Somebody may have deleted it."""
    place = PlaceInMemory()
    async with Publishing(place).running() as rig:
        await rig.tried(1)
        rig.clock.advance(LOOK_AFTER_SECONDS)
        rig.watch.publish(rig.watch.value)
        await rig.tried(2)
    assert place.written[0] == place.written[1]


def file_target(path, form="spiffe", **over):
    return FileTarget(PublishFileSection.model_validate({"path": str(path), "format": form, **over}))


def ours(sequence, form=BundleFormat.SPIFFE):
    return publication_of(bundle(sequence), form)


def test_a_file_is_replaced_with_its_mode_and_only_if_it_is_another(tmp_path):
    """Old or new, never half; the mode is put right too."""
    path = tmp_path / "bundle.json"
    target = file_target(path, mode="0640")
    assert target.put(ours(1)) is Outcome.WRITTEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    inode = path.stat().st_ino
    assert target.put(ours(1)) is Outcome.UNCHANGED
    assert path.stat().st_ino == inode
    path.chmod(0o600)
    assert target.put(ours(1)) is Outcome.WRITTEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert target.put(ours(2)) is Outcome.WRITTEN
    assert load_bundle(path.read_bytes(), TD).bundle.sequence == 2
    assert os.listdir(tmp_path) == ["bundle.json"]


def test_a_file_that_tells_a_newer_sequence_is_left_alone(tmp_path):
    """TDB-06: two servers share a file on a network disk; what is no bundle tells nothing and is replaced."""
    path = tmp_path / "bundle.json"
    target = file_target(path)
    target.put(ours(5))
    with pytest.raises(PreconditionFailed, match="sequence 5"):
        target.put(ours(4))
    assert load_bundle(path.read_bytes(), TD).bundle.sequence == 5
    path.write_text("something else")
    assert target.put(ours(4)) is Outcome.WRITTEN


def test_a_file_that_cannot_be_written_says_what_to_do(tmp_path):
    """A missing folder, a link that somebody planted."""
    with pytest.raises(ConfigError, match="check its path"):
        file_target(tmp_path / "missing" / "bundle.pem", "pem").put(ours(1, BundleFormat.PEM))
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((CorruptState, Unavailable)):
        file_target(tmp_path / "link", "pem").put(ours(1, BundleFormat.PEM))
    assert (tmp_path / "elsewhere").read_text() == "precious"


async def test_a_server_publishes_each_change_of_its_bundle(tmp_path):
    """A rotation reaches the file; health and metrics name the place."""
    path = tmp_path / "bundle.json"
    publish = {"file": {"here": {"path": str(path), "format": "spiffe"}}}
    async with live_server(tmp_path, publish=publish) as server, Supervisor() as tasks:
        tasks.start(server.server.published.keep(), "endpoints")
        tasks.start(server.server.publishing.keep_up(), "publishing")
        await _told(server.server)
        before = path.read_bytes()
        await server.local.PrepareX509Authority(pb.PrepareX509AuthorityRequest(), timeout=20)
        await _told(server.server)
        assert path.read_bytes() != before
        part = server.server.monitor.report().document()["server.publish"]
        assert part["state"] == "ok"
        assert part["file.here"]["sequence"] == json.loads(path.read_bytes())["spiffe_sequence"]
        tasks.stop()


async def _told(server):
    """Wait until what memory holds is told to be published."""
    async with asyncio.timeout(20):
        while server.publishing.states()[0].sequence != server.store.state.value.bundles.own.sequence:
            await asyncio.sleep(0.01)


REFUSED = {
    "relative": ({"file": {"a": {"path": "bundle.pem", "format": "pem"}}}, "absolute"),
    "writable": ({"file": {"a": {"path": "/x/b", "format": "pem", "mode": "0666"}}}, "octal mode"),
    "format": ({"file": {"a": {"path": "/x/b", "format": "der"}}}, "format"),
    "twice": ({"file": {n: {"path": "/x/b", "format": "pem"} for n in "ab"}}, "same path"),
    "plain": (
        {"aws_s3": {"a": {"region": "x", "bucket": "bbb", "object_key": "k", "format": "pem", "endpoint": "http://h"}}},
        "insecure_http",
    ),
    "half": (
        {"aws_s3": {"a": {"region": "x", "bucket": "bbb", "object_key": "k", "format": "pem", "access_key_id": "AK"}}},
        "belong together",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_be_meant_are_refused(name):
    """With the rule."""
    publish, words = REFUSED[name]
    with pytest.raises(ConfigError, match=words):
        from_mapping({"trust_domain": "example.org", "publish": publish})
