"""Who calls, as the access check and the audit log are told: by connection, and never another's (A5, A16)."""

from __future__ import annotations

from types import SimpleNamespace

import grpc

from identity_server.domain.access import Caller, CallerKind
from identity_server.rpc.caller import AccessInterceptor, current_caller, presented_by
from spiffe_core.runtime.request_id import current_caller_facts
from spiffe_core.wire.peer import TlsPeer
from tests.builders import sid

METHOD = SimpleNamespace(method="/package.Service/Method")
KINDS = (CallerKind.AGENT, CallerKind.ADMIN)


class Admitting:
    """Lets everybody in, as what is next; keeps what it was shown and what the audit log would have said of a refusal."""

    def __init__(self) -> None:
        self.kind = CallerKind.AGENT
        self.shown = []

    async def admit(self, _method, presented):
        self.shown.append((presented, current_caller_facts()))
        return Caller(self.kind, presented.origin, presented.spiffe_id, presented.serial)


async def called(admissions):
    """A call's handler behind the access check: who calls, and what the audit log would say of him."""
    access = AccessInterceptor(lambda context: context, admissions)

    async def answer(_request, _context):
        return current_caller(), current_caller_facts()

    async def found(_details):
        return grpc.unary_unary_rpc_method_handler(answer)

    return access, (await access.intercept_service(found, METHOD)).unary_unary


async def test_every_call_is_told_of_its_own_connection():
    """However many there are, in whatever order they call, and when one takes another's place in memory."""
    admissions = Admitting()
    _, call = await called(admissions)
    for number in range(60):
        agent = sid(f"/spire/agent/{number % 5}")
        admissions.kind = KINDS[number % 2]
        lasting = TlsPeer(f"127.0.0.1:{number}", agent, serial=str(number))
        for peer in (lasting, TlsPeer(f"127.0.0.2:{number}"), lasting):
            who, facts = await call(b"", peer)
            named = {"spiffe_id": str(agent), "serial": str(number)} if peer is lasting else {}
            told = {"address": peer.address, **named}
            assert (who.kind, who.spiffe_id, who.serial) == (admissions.kind, peer.spiffe_id, peer.serial)
            assert facts == {"as": admissions.kind.value, **told}
            assert admissions.shown.pop() == (presented_by(peer), told)


async def test_what_is_known_of_a_connection_is_kept_while_it_is_open_however_many_there_are():
    """A16: thousands of agents call in turn; what their certificates say is put together once, and gone with them."""
    admissions = Admitting()
    access, call = await called(admissions)
    open_ones = [TlsPeer(f"10.0.{number >> 8}.{number & 255}:1", serial=str(number)) for number in range(2000)]
    first = [(await call(b"", peer))[1] for peer in open_ones]
    again = [(await call(b"", peer))[1] for peer in open_ones]
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert len(access._connections) == 2000
    del open_ones[10:]
    assert len(access._connections) == 10
