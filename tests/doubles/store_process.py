"""`python -m tests.doubles.store_process PLACE`: writes entries as fast as it can and prints what was acknowledged.

One line per acknowledged write: `one ID` or `batch NUMBER` (a batch of 500, ids `NUMBER-0` to `NUMBER-499`). It runs
until it is killed. PLACE is a SQLite file or the URL of a database. With `--hold` it only opens the store, prints
`ready`, and waits. With `--freeze` it begins to write the entry `frozen`, and stops itself (SIGSTOP) while it holds the
log's head; told to go on, it prints `stored` or the refusal, and ends.
"""

import asyncio
import os
import signal
import sys

from spiffe_core.errors import IdentityError
from tests.builders import make_entry
from tests.databases import running_store


async def main(place: str, *, hold: bool, freeze: bool) -> None:
    async with running_store(place, server_id=f"process-{os.getpid()}") as store:
        print("ready", flush=True)
        if hold:
            await asyncio.Event().wait()
        if freeze:
            await frozen(store)
            return
        first = len(store.state.value.entries)
        await asyncio.gather(*(one_by_one(store, f"{first}-{caller}") for caller in range(4)), batches(store, first))


async def one_by_one(store, name: str) -> None:
    number = 0
    while True:
        number += 1
        entry = make_entry(id=f"s-{name}-{number}", spiffe_id=f"/s/{name}/{number}")
        await store.execute(lambda uow, entry=entry: uow.entries.add([entry]))
        print("one", entry.id, flush=True)


async def frozen(store) -> None:
    stops = [True]

    def command(uow) -> None:
        if stops:
            stops.clear()  # it may run once more after the transaction was lost
            os.kill(os.getpid(), signal.SIGSTOP)
        uow.entries.add([make_entry(id="frozen", spiffe_id="/frozen")])

    try:
        await store.execute(command)
    except IdentityError as error:
        print(error.public, flush=True)
    else:
        print("stored", flush=True)


async def batches(store, first: int) -> None:
    number = first
    while True:
        number += 1
        entries = [make_entry(id=f"b-{number}-{part}", spiffe_id=f"/b/{number}/{part}") for part in range(500)]
        await store.execute(lambda uow, entries=entries: uow.entries.add(entries))
        print("batch", number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], hold="--hold" in sys.argv, freeze="--freeze" in sys.argv))
