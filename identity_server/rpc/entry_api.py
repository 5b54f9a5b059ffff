"""spire.api.server.entry.v1.Entry (spire_wire section 5.3), but for what agents ask: see `entry_sync`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

from identity_server.rpc import convert as own
from identity_server.rpc.caller import Context, current_caller
from identity_server.rpc.entry_sync import RevisionPages, all_entries, synchronise
from identity_server.services.entitlements import agent_path
from identity_server.services.progress import Progress
from identity_server.services.registration import Change, Outcome, Registration
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import Conflict, IdentityError, InvalidEntry
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire._gen.spire.api.types import status_pb2
from spiffe_core.wire.entry_bytes import entry_bytes, sized, tags
from spiffe_core.wire.status import item_status


class EntryApi:
    """Registration entries, for administrators and for agents."""

    def __init__(
        self, registration: Registration, progress: Progress, *, trust_domain: TrustDomain, new_id: Callable[[], str]
    ) -> None:
        self._registration = registration
        self._progress = progress
        self._trust_domain = trust_domain
        self._new_id = new_id
        self._pages = RevisionPages()

    async def CountEntries(
        self, request: entry_pb2.CountEntriesRequest, _context: Context
    ) -> entry_pb2.CountEntriesResponse:
        """How many entries fit the filter."""
        wanted = own.entry_filter_from_proto(request.filter, self._trust_domain)
        return entry_pb2.CountEntriesResponse(count=await self._registration.count(wanted))

    async def ListEntries(
        self, request: entry_pb2.ListEntriesRequest, _context: Context
    ) -> entry_pb2.ListEntriesResponse:
        """Entries by filter and page."""
        wanted = own.entry_filter_from_proto(request.filter, self._trust_domain)
        page = await self._registration.page(wanted, request.page_token, request.page_size)
        mask = convert.mask_of(request, "output_mask", entry_types.EntryMask)
        response = entry_pb2.ListEntriesResponse(next_page_token=page.next_token)
        for number, entry in enumerate(page, 1):
            response.entries.append(_shown(entry, mask))
            if not number % own.SLICE:
                await asyncio.sleep(0)
        return response

    async def GetEntry(self, request: entry_pb2.GetEntryRequest, _context: Context) -> entry_types.Entry:
        """One entry by id."""
        entry = await self._registration.get(request.id)
        return _shown(entry, convert.mask_of(request, "output_mask", entry_types.EntryMask))

    async def BatchCreateEntry(self, request: entry_pb2.BatchCreateEntryRequest, _context: Context) -> bytes:
        """One result per entry; a similar entry answers AlreadyExists with the existing one filled in."""
        mask = convert.mask_of(request, "output_mask", entry_types.EntryMask)
        read: list[Outcome] = []
        for number, message in enumerate(request.entries, 1):
            item = self._read(message)
            read.append(item)
            if isinstance(item, IdentityError):
                self._registration.refused(current_caller(), "create", message.id, item)
            if not number % own.SLICE:
                await asyncio.sleep(0)
        good = [entry for entry in read if isinstance(entry, RegistrationEntry)]
        stored = iter(await self._registration.create(current_caller(), good))
        results: list[bytes] = []
        for number, item in enumerate(read, 1):
            results.append(_creation(item if isinstance(item, IdentityError) else next(stored), mask))
            if not number % own.SLICE:
                await asyncio.sleep(0)
        return b"".join(results)

    async def BatchUpdateEntry(
        self, request: entry_pb2.BatchUpdateEntryRequest, _context: Context
    ) -> entry_pb2.BatchUpdateEntryResponse:
        """One result per entry; the input mask says which fields are written, none says all."""
        mask = convert.mask_of(request, "output_mask", entry_types.EntryMask)
        written = convert.mask_of(request, "input_mask", entry_types.EntryMask)
        changes = [
            Change(message.id, partial(_edit, incoming=message, mask=written, trust_domain=self._trust_domain))
            for message in request.entries
        ]
        response = entry_pb2.BatchUpdateEntryResponse()
        for number, outcome in enumerate(await self._registration.update(current_caller(), changes), 1):
            status, entry = _result(outcome, mask)
            response.results.add(status=status, entry=entry)
            if not number % own.SLICE:
                await asyncio.sleep(0)
        return response

    async def BatchDeleteEntry(
        self, request: entry_pb2.BatchDeleteEntryRequest, _context: Context
    ) -> entry_pb2.BatchDeleteEntryResponse:
        """One result per id."""
        ids = list(request.ids)
        outcomes = await self._registration.delete(current_caller(), ids)
        response = entry_pb2.BatchDeleteEntryResponse()
        for entry_id, outcome in zip(ids, outcomes, strict=True):
            response.results.add(status=item_status(outcome), id=entry_id)
        return response

    async def GetAuthorizedEntries(self, request: entry_pb2.GetAuthorizedEntriesRequest, _context: Context) -> bytes:
        """Everything the calling agent is entitled to."""
        mask = convert.mask_of(request, "output_mask", entry_types.EntryMask)
        caller = current_caller()
        complete = self._progress.polling(agent_path(caller))
        answer = await all_entries(self._registration.authorised(caller), mask)
        complete()
        return answer

    async def SyncAuthorizedEntries(
        self, requests: AsyncIterator[entry_pb2.SyncAuthorizedEntriesRequest], _context: Context
    ) -> AsyncIterator[bytes]:
        """The same, cheaply for an agent that holds most of it already."""
        caller = current_caller()
        complete = self._progress.polling(agent_path(caller))
        async for response in synchronise(requests, lambda: self._registration.authorised(caller), self._pages):
            yield response
        complete()

    def _read(self, message: entry_types.Entry) -> Outcome:
        try:
            return convert.entry_from_proto(message, trust_domain=self._trust_domain, new_id=self._new_id())
        except InvalidEntry as error:
            return InvalidEntry(f"failed to convert entry: {error.public}", field=error.field)


def _edit(
    existing: RegistrationEntry,
    incoming: entry_types.Entry,
    mask: entry_types.EntryMask | None,
    trust_domain: TrustDomain,
) -> RegistrationEntry:
    try:
        return convert.apply_entry_mask(existing, incoming, mask, trust_domain=trust_domain)
    except InvalidEntry as error:
        raise InvalidEntry(f"failed to convert entry: {error.public}", field=error.field) from None


def _shown(entry: RegistrationEntry, mask: entry_types.EntryMask | None) -> entry_types.Entry:
    message = convert.entry_to_proto(entry)
    return message if mask is None else convert.mask_entry(message, mask)


_CREATED = entry_pb2.BatchCreateEntryResponse.Result
_RESULTS = tags(entry_pb2.BatchCreateEntryResponse)["results"]
_RESULT = tags(_CREATED)
_DONE = sized(_RESULT["status"], item_status(None).SerializeToString())


def _creation(outcome: Outcome, mask: entry_types.EntryMask | None) -> bytes:
    """One result of a batch, in its place in the response; what went well and is wanted whole needs no messages."""
    if mask is None and isinstance(outcome, RegistrationEntry):
        return sized(_RESULTS, _DONE + sized(_RESULT["entry"], entry_bytes(outcome)))
    status, entry = _result(outcome, mask)
    return sized(_RESULTS, _CREATED(status=status, entry=entry).SerializeToString())


def _result(outcome: Outcome, mask: entry_types.EntryMask | None) -> tuple[status_pb2.Status, entry_types.Entry | None]:
    if isinstance(outcome, RegistrationEntry):
        return item_status(None), _shown(outcome, mask)
    existing = outcome.existing if isinstance(outcome, Conflict) else None
    return item_status(outcome), _shown(existing, mask) if isinstance(existing, RegistrationEntry) else None
