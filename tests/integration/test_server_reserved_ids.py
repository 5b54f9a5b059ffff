"""Names that are the trust domain's own: no call hands them to a workload, whichever field they come in (S33, N-C-09)."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from tests.doubles.live_server import TD, entry, live_server, spiffe_id

KEY = generate(KeyKind.EC_P256)
RESERVED = ("/spire", "/spire/server", "/spire/server/x", "/spire/agent", "/spire/agent/join_token/x", "/spire/other/x")
LIKE_THEM = ("/spirex", "/spire.server", "/Spire/server", "/a/spire/server", "/agent/x", "/server")
"""Reserved is the segment, byte by byte (SPIFFE-ID section 2.2 compares paths with their case)."""


@pytest.fixture
async def live():
    async with live_server(wit={"enabled": True}) as server:
        yield server


def askers(live):
    """Every call that would make somebody of a SPIFFE ID, as a function of its path."""
    svid = live.svid
    create, update = entry_pb2.BatchCreateEntryRequest, entry_pb2.BatchUpdateEntryRequest

    def csr(path):
        return build_csr(KEY, spiffe_id=SpiffeId(TD, path))

    return {
        "created entry": lambda path: live.entry.BatchCreateEntry(create(entries=[entry(path)])),
        "updated entry": lambda path: live.entry.BatchUpdateEntry(update(entries=[entry(path, id="mine")])),
        "updated ID alone": lambda path: live.entry.BatchUpdateEntry(
            update(entries=[{"id": "mine", "spiffe_id": spiffe_id(path)}], input_mask={"spiffe_id": True})
        ),
        "minted X.509-SVID": lambda path: svid.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr(path))),
        "minted JWT-SVID": lambda path: svid.MintJWTSVID(
            svid_pb2.MintJWTSVIDRequest(id=spiffe_id(path), audience=["a"], ttl=60)
        ),
        "minted WIT-SVID": lambda path: svid.MintWITSVID(
            svid_pb2.MintWITSVIDRequest(
                id=spiffe_id(path), ttl=60, public_key=spki_der(KEY.public_key()), signing_algorithm="ES256"
            )
        ),
        "name of a joining node": lambda path: live.agent.CreateJoinToken(
            agent_pb2.CreateJoinTokenRequest(ttl=60, agent_id=spiffe_id(path))
        ),
    }


async def verdict(call):
    """(status, reason) of a call, or of the one item of its batch."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code().value[0], error.details() or ""
    for result in getattr(answer, "results", ()):
        return result.status.code, result.status.message
    return 0, "OK"


async def test_what_is_the_trust_domains_own_is_nobodys_in_any_field(live):
    """S33, N-C-09: also the ID of an agent that is there, and the server's; nothing is stored."""
    agent = await live.join()
    await live.entries(entry("/mine", id="mine"))
    for path in (*RESERVED, agent.path):
        for name, ask in askers(live).items():
            code, text = await verdict(ask(path))
            assert code == grpc.StatusCode.INVALID_ARGUMENT.value[0], (name, path, text)
    assert set(live.state.entries) == {"mine"}
    kept = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id="mine"))
    assert (kept.spiffe_id.path, kept.revision_number) == ("/mine", 0)


async def test_what_only_looks_like_it_is_a_name_like_any_other(live):
    """S33: the guard against refusing too much."""
    await live.entries(entry("/mine", id="mine"))
    for path in LIKE_THEM:
        for name, ask in askers(live).items():
            code, text = await verdict(ask(path))
            taken = name.startswith("updated") and code == grpc.StatusCode.ALREADY_EXISTS.value[0]
            assert code == 0 or taken, (name, path, text)
