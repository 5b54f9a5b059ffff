"""A request that comes too late: the server has ended the stream, and what it ended it with counts (R41, R44)."""

import asyncio

import grpc.aio
import pytest

from spiffe_core.errors import Unavailable
from spiffe_core.wire import exchange
from spiffe_core.wire.exchange import END, LAST_WORD_LOOKS, Exchange

OK, INTERNAL, DENIED = grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.PERMISSION_DENIED
LATE = (INTERNAL, "Internal error from Core")
REFUSED = (DENIED, "agent is banned")


class EndedCall:
    """As grpc.aio behaves: the write fails with a status of its own, and the server's comes `after` so many looks.

    Answers that were sent before the end are there for whoever iterates, and for nobody who reads.
    """

    def __init__(self, end, *answers, after=0, begun=True):
        self.end, self.answers, self.after, self.begun = end, answers, after, begun
        self.looks = 0

    async def write(self, _request):
        if not self.begun:
            raise asyncio.InvalidStateError("RPC already finished")
        raise self._error()

    async def code(self):
        self.looks += 1
        return self._now()[0]

    async def details(self):
        return self._now()[1]

    async def read(self):
        if self._now()[0] is not OK:
            raise self._error()
        return grpc.aio.EOF

    async def __aiter__(self):
        for answer in self.answers:
            yield answer
        if self._now()[0] is not OK:
            raise self._error()

    def _now(self):
        return self.end if self.looks > self.after or not self.begun else LATE

    def _error(self):
        code, details = self._now()
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(exchange, "LAST_WORD_SECONDS", 0.0)


async def said(call):
    made = Exchange(call)
    await made.say(object())
    return made


@pytest.mark.parametrize("after", [0, 1, 7])
@pytest.mark.parametrize("end", [REFUSED, (INTERNAL, "see the log of the server")], ids=["refusal", "bug"])
async def test_a_refusal_arrives_though_the_request_could_not_be_written(end, after):
    """R44: banned is banned, however busy the machine is."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await said(EndedCall(end, after=after))).hear()
    assert (caught.value.code(), caught.value.details()) == end


@pytest.mark.parametrize("begun", [True, False], ids=["while writing", "before writing"])
async def test_answers_that_were_sent_before_the_end_are_heard_and_then_the_end(begun):
    call = await said(EndedCall((OK, ""), "first", "second", begun=begun))
    assert [await call.hear() for _ in range(3)] == ["first", "second", END]


async def test_a_refusal_that_was_there_before_is_told():
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await said(EndedCall(REFUSED, begun=False))).hear()
    assert caught.value.code() is DENIED


@pytest.mark.parametrize("end", [REFUSED, (grpc.StatusCode.UNAVAILABLE, "refused")], ids=["banned", "no connection"])
async def test_a_write_that_fails_with_the_calls_own_status_is_told_at_once(end):
    """The dialer's reason and the server's refusals stand as they are."""
    call = EndedCall(end, after=-1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await said(call)).hear()
    assert (caught.value.code(), caught.value.details(), call.looks) == (*end, 0)


async def test_a_word_that_never_comes_is_not_waited_for_without_end():
    call = EndedCall(REFUSED, after=10**6)
    with pytest.raises(Unavailable, match="while a request was on its way"):
        await (await said(call)).hear()
    assert call.looks == LAST_WORD_LOOKS
