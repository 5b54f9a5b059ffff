"""`FileSets` over a client that a test scripts: what is written when tokens, certificates or time do not go together."""

import base64
import json

import pytest

from node_agent.file_sets.service import FileSets
from node_agent.file_sets.settings import FilesSettings
from spiffe_core.bundle import BundleSet
from spiffe_core.errors import ConfigError, Forbidden, Unavailable
from spiffe_core.runtime.settings import build_settings
from spiffe_core.x509_svid import X509Svid
from tests.authority import SpiffeTestCA
from tests.doubles.clock import FakeClock
from workload_api.client import FetchedJwt
from workload_api.x509_context import X509Context


def token(end, name):
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'ES256'})}.{part({'exp': end, 'sub': name})}.{part('signature')}"


class Agent:
    """What FileSets asks of a Workload API client."""

    def __init__(self, clock):
        self.clock = clock
        self.ca = SpiffeTestCA("example.org")
        self.hints = {"/web": "", "/db": "data"}
        self.trouble = None
        self.troubles = []
        self.asked = 0

    def context(self, *paths):
        made = [(self.ca.issue(f"spiffe://example.org{path}"), self.hints[path]) for path in paths]
        svids = tuple(X509Svid.load(one.chain, one.key, hint=hint) for one, hint in made)
        return X509Context(svids, BundleSet(self.ca.bundle(), {}))

    async def fetch_x509(self, *, timeout):  # the client's
        if self.troubles:
            raise self.troubles.pop()
        return self.context("/web")

    async def fetch_jwt(self, _audience, *, spiffe_id=None):
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        end = int(self.clock.now().timestamp()) + 300
        made = [X509Svid.load(one.chain, one.key) for one in map(self._issue, self.hints)]
        return tuple(
            FetchedJwt(one.spiffe_id, token(end, str(one.spiffe_id)), hint)
            for one, hint in zip(made, self.hints.values(), strict=True)
            if spiffe_id in {None, one.spiffe_id}
        )

    def _issue(self, path):
        return self.ca.issue(f"spiffe://example.org{path}")


def sets_of(tmp_path, agent, **over):
    table = {"directory": str(tmp_path / "tls"), "jwt": [{"name": "token", "audience": ["vault"]}], **over}
    return FileSets(build_settings(FilesSettings, {"set": [table]}, source="test"), agent, agent.clock)


def read(tmp_path, name):
    return (tmp_path / "tls" / name).read_bytes()


def subject_of(tmp_path):
    payload = read(tmp_path, "token").split(b".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + b"=="))["sub"]


@pytest.fixture
def agent():
    return Agent(FakeClock())


async def test_a_token_that_cannot_be_had_does_not_hold_up_the_certificate_beside_it(tmp_path, agent):
    """R20: a server that signs no tokens for a while must not let the certificate on disk run out."""
    files = sets_of(tmp_path, agent)
    files._context = agent.context("/web")
    await files.write_due()
    before, first = read(tmp_path, "svid.pem"), read(tmp_path, "token")
    agent.clock.advance(200)  # the token is due
    agent.trouble = Unavailable("could not fetch JWT-SVID: the server is away")
    files._context = agent.context("/web")
    due = await files.write_due()
    assert read(tmp_path, "svid.pem") != before
    assert read(tmp_path, "token") == first
    assert due is not None, "tried again"
    agent.trouble = None
    agent.clock.advance(due)
    await files.write_due()
    assert read(tmp_path, "token") != first


async def test_the_token_of_another_identity_is_never_written_beside_a_certificate(tmp_path, agent):
    files = sets_of(tmp_path, agent)
    files._context = agent.context("/web")
    await files.write_due()
    before = read(tmp_path, "svid.pem")
    files._context = agent.context("/db")  # the first identity is another one now
    agent.trouble = Unavailable("the server is away")
    await files.write_due()
    assert read(tmp_path, "svid.pem") == before
    assert subject_of(tmp_path) == "spiffe://example.org/web"
    agent.trouble = None
    agent.clock.advance(60)
    await files.write_due()
    assert subject_of(tmp_path) == "spiffe://example.org/db"


async def test_a_set_of_tokens_alone_is_of_the_identity_with_the_hint(tmp_path, agent):
    bare = {"certificate": "", "key": "", "bundle": ""}
    files = sets_of(tmp_path, agent, hint="data", **bare)
    await files.once(1.0)
    assert subject_of(tmp_path) == "spiffe://example.org/db"
    with pytest.raises(ConfigError, match="has the hint nothing"):
        await sets_of(tmp_path, agent, hint="nothing", **bare).once(1.0)


@pytest.mark.parametrize(
    "trouble", [Unavailable("no agent yet"), Forbidden("no identity issued")], ids=["agent", "entry"]
)
async def test_once_waits_for_an_agent_that_is_not_up_and_an_entry_that_is_not_there_yet(tmp_path, agent, trouble):
    """An init container is started beside the agent, and its entry made by a controller."""
    agent.troubles = [trouble] * 5
    await sets_of(tmp_path, agent).once(30.0)
    assert subject_of(tmp_path) == "spiffe://example.org/web"
    agent.troubles = [trouble] * 50
    with pytest.raises(type(trouble)):
        await sets_of(tmp_path, agent).once(30.0)
    assert len(agent.troubles) > 10


async def test_a_directory_that_cannot_be_made_is_named(tmp_path, agent):
    files = sets_of(tmp_path / "missing", agent)
    with pytest.raises(Unavailable, match=r"missing/tls: No such file"):
        await files.once(1.0)


async def test_after_a_machine_slept_its_tokens_are_due(tmp_path, agent):
    """R19: the monotonic clock stands still while a laptop is closed; a token on disk ends all the same."""
    files = sets_of(tmp_path, agent)
    files._context = agent.context("/web")
    await files.write_due()
    asked = agent.asked
    agent.clock.jump(3600)
    await files.write_due()
    assert agent.asked > asked
