"""Push under fire (architecture A9, R34, R36, R47): whatever happens, an agent ends with what it is authorised for."""

import random as chance  # noqa: TID251  # seeded by Hypothesis
from datetime import UTC, datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from identity_server.services.admission import Presented
from identity_server.services.followers import Followers
from spiffe_core.errors import Unavailable
from tests.builders import OTHER_TD, TD, make_bundle, sid
from tests.doubles.clock import FakeClock
from tests.doubles.state_maker import FreeAdmission, StateMaker, attested, record

AGENTS = ("/spire/agent/a", "/spire/agent/b", "/spire/agent/c")
PARENTS = (*AGENTS, "/group/x", "/group/y", "/svc/1", "/svc/2")
PATHS = ("/svc/1", "/svc/2", "/svc/3", "/group/x")
TEXTS = ("os:linux", "zone:a", "zone:b")
IDS = tuple(f"e{number}" for number in range(8))
FAR = datetime(2100, 1, 1, tzinfo=UTC)


def authorised_from_scratch(state, path):
    """Nothing shared with the code under test: a fixpoint over all entries."""
    entries = list(state.entries.values())
    agent = state.agents.get(path)
    names = {path}
    if agent is not None:
        names |= {
            one.path for one in entries if one.alias and one.node_selectors and one.node_selectors <= agent.selectors
        }
    found = {}
    while True:
        more = {one.id: one for one in entries if not one.alias and one.parent in names and one.id not in found}
        if not more:
            return found
        found |= more
        names |= {one.path for one in more.values()}


class Node:
    """An agent: what it holds, where it believes to be, and its stream."""

    def __init__(self, path):
        self.path = path
        self.position = ""
        self.entries = {}
        self.bundles = {}
        self.scope = None
        self.stream = None

    def connect(self, followers):
        self.leave()
        self.followers = followers
        self.scope = followers.follow(Presented("test", False, sid(self.path), "1", FAR, b""), self.position)
        self.stream = self.scope.__enter__()
        if self.stream.sent is None:
            held = {one.id: (one.revision_number, one.created_at) for one in self.entries.values()}
            self.take(followers.first(self.stream, held if self.position else {}))

    def leave(self):
        if self.scope is not None:
            self.scope.__exit__(None, None, None)
            self.scope = self.stream = None

    def take(self, delta):
        if delta.all_entries:
            self.entries = {}
        for entry_id in delta.removed:
            self.entries.pop(entry_id, None)
        self.entries.update((one.id, one) for one in delta.entries)
        if delta.all_bundles:
            self.bundles = {}
        for name in delta.removed_bundles:
            self.bundles.pop(name, None)
        self.bundles.update((one.trust_domain, one) for one in delta.bundles)
        self.position = str(self.stream.sent.position)
        self.followers.acknowledge(self.stream, self.position, 0)

    def catch_up(self):
        """Read until nothing is left to say; False if the stream is over."""
        if self.stream is None:
            return False
        try:
            while self.stream.news.is_set():
                delta = self.followers.next(self.stream)
                if delta:
                    self.take(delta)
        except Unavailable:
            self.leave()
            return False
        return True


class Propagation(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.truth = StateMaker()
        self.servers = [StateMaker(), StateMaker()]
        self.missing = [[], []]
        self.hubs = [self.hub(0), self.hub(1)]
        self.nodes = {path: Node(path) for path in AGENTS}
        self.at = dict.fromkeys(AGENTS, 0)
        self.versions = {}

    def hub(self, number):
        return Followers(store=self.servers[number], admissions=FreeAdmission(), clock=self.clock)

    @initialize()
    def begin(self):
        self.change(
            agents={path: attested(*TEXTS[:1], path=path) for path in AGENTS}, bundles={TD: make_bundle(sequence=1)}
        )
        self.settle()

    def change(self, **changes):
        """One revision: known to the database at once, to each server when it follows."""
        self.truth.apply(**changes)
        for missing in self.missing:
            missing.append(self.truth.last)

    def follow(self, number):
        for change in self.missing[number]:
            server = self.servers[number]
            server.state.publish(server.state.value.apply(change))
        self.missing[number].clear()

    @rule(
        entry_id=st.sampled_from(IDS),
        path=st.sampled_from(PATHS),
        parent=st.sampled_from(PARENTS),
        federated=st.booleans(),
        recreated=st.booleans(),
    )
    def put_entry(self, entry_id, path, parent, federated, recreated):
        """R47: an entry that is created again begins with revision 0 and a later time."""
        revision, created = self.versions.get(entry_id, (-1, 1))
        version = (0, created + 1) if recreated else (revision + 1, created)
        self.versions[entry_id] = version
        more = {"federates_with": (OTHER_TD,)} if federated else {}
        entry = record(entry_id, path, parent, revision_number=version[0], created_at=version[1], **more)
        self.change(entries={entry_id: entry})

    @rule(path=st.sampled_from(AGENTS), name=st.sampled_from(PATHS), ids=st.permutations(IDS), number=st.integers(0, 1))
    def nest(self, path, name, ids, number):
        """A child appears below an identity that its agent has held for a while."""
        self.put_entry(ids[0], name, path, federated=False, recreated=False)
        self.follow(number)
        for node in self.nodes.values():
            node.catch_up()
        self.put_entry(ids[1], "/svc/3", name, federated=True, recreated=False)
        self.follow(number)

    @rule(path=st.sampled_from(AGENTS), text=st.sampled_from(TEXTS), entry_id=st.sampled_from(IDS))
    def regroup(self, path, text, entry_id):
        """A node moves into a group by its selectors, and out of it."""
        self.change_alias("/group/y", {text}, gone=False)
        self.put_entry(entry_id, "/svc/3", "/group/y", federated=False, recreated=False)
        for texts in ((text,), ()):
            self.settle()
            self.change_node_selectors(path, texts)
            self.follow(self.at[path])

    @rule(entry_id=st.sampled_from(IDS), path=st.sampled_from(AGENTS), number=st.integers(0, 1))
    def recreate_while_away(self, entry_id, path, number):
        """R47: the same revision number, seen by a server that does not know the agent's position."""
        self.delete_entry(entry_id)
        self.put_entry(entry_id, "/svc/1", path, federated=False, recreated=True)
        self.settle()
        self.nodes[path].leave()
        self.delete_entry(entry_id)
        self.put_entry(entry_id, "/svc/2", path, federated=False, recreated=True)
        self.restart_server(number)
        self.reconnect(path, number)

    @rule(entry_id=st.sampled_from(IDS))
    def delete_entry(self, entry_id):
        self.change(entries={entry_id: None})

    @rule(
        name=st.sampled_from(("/group/x", "/group/y")),
        texts=st.sets(st.sampled_from(TEXTS), min_size=1),
        gone=st.booleans(),
    )
    def change_alias(self, name, texts, gone):
        entry_id = f"alias-{name[-1]}"
        alias = record(entry_id, name, "/spire/server", selectors=sorted(texts))
        self.change(entries={entry_id: None if gone else alias})

    @rule(path=st.sampled_from(AGENTS), texts=st.sets(st.sampled_from(TEXTS)))
    def change_node_selectors(self, path, texts):
        self.change(agents={path: attested(*sorted(texts), path=path)})

    @rule(sequence=st.integers(2, 9), own=st.booleans(), gone=st.booleans())
    def change_bundle(self, sequence, own, gone):
        if own:
            self.change(bundles={TD: make_bundle(sequence=sequence)})
        else:
            bundle = None if gone else make_bundle(trust_domain=OTHER_TD, sequence=sequence)
            self.change(bundles={OTHER_TD: bundle})

    @rule(seed=st.integers(0, 2**16))
    def burst(self, seed):
        """Many changes between two messages."""
        draw = chance.Random(seed)
        for _ in range(5):
            entry_id = draw.choice(IDS)
            revision, created = self.versions.get(entry_id, (0, 1))
            self.versions[entry_id] = (revision + 1, created)
            entry = record(
                entry_id, draw.choice(PATHS), draw.choice(PARENTS), revision_number=revision + 1, created_at=created
            )
            self.change(entries={entry_id: draw.choice((entry, entry, None))})

    @rule(number=st.integers(0, 1))
    def server_follows(self, number):
        self.follow(number)

    @rule(path=st.sampled_from(AGENTS), number=st.integers(0, 1))
    def reconnect(self, path, number):
        self.at[path] = number
        self.nodes[path].connect(self.hubs[number])

    @rule(path=st.sampled_from(AGENTS))
    def lose_a_message(self, path):
        """What was on its way when the connection broke is not applied."""
        node = self.nodes[path]
        if node.stream is not None and node.stream.news.is_set():
            self.hubs[self.at[path]].next(node.stream)
        node.leave()

    @rule(path=st.sampled_from(AGENTS))
    def read(self, path):
        self.nodes[path].catch_up()

    @rule(number=st.integers(0, 1))
    def restart_server(self, number):
        """It loads everything, and remembers nobody."""
        for path, node in self.nodes.items():
            if self.at[path] == number:
                node.leave()
        self.servers[number] = StateMaker()
        self.servers[number].load(self.truth.state.value)
        self.missing[number].clear()
        self.hubs[number] = self.hub(number)

    @rule(number=st.integers(0, 1))
    def reload(self, number):
        """A far-behind follower reads everything anew, under open streams."""
        self.servers[number].load(self.truth.state.value)
        self.missing[number].clear()

    @rule()
    def settle(self):
        """Every server follows, every agent connects and reads: all hold what they are authorised for."""
        for number in range(2):
            self.follow(number)
        for path, node in self.nodes.items():
            if not node.catch_up():
                node.connect(self.hubs[self.at[path]])
                assert node.catch_up()
            self.check(path, node, self.truth.state.value)
            assert self.hubs[self.at[path]].revision_of(node.stream) == self.truth.state.value.position.revision

    def check(self, path, node, state):
        wanted = authorised_from_scratch(state, path)
        assert {key: one.wire for key, one in node.entries.items()} == {key: one.wire for key, one in wanted.items()}
        domains = {TD, *(name for one in wanted.values() for name in one.federates_with)}
        assert node.bundles == {name: found for name in domains if (found := state.trust_bundles.get(name))}

    @invariant()
    def who_has_read_holds_what_its_server_knows(self):
        for path, node in self.nodes.items():
            if node.stream is not None and not node.stream.news.is_set():
                self.check(path, node, self.servers[self.at[path]].state.value)


TestPropagation = Propagation.TestCase
TestPropagation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
