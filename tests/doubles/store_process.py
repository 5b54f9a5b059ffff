"""`python -m tests.doubles.store_process FILE`: writes entries as fast as it can and prints what was acknowledged.

One line per acknowledged write: `one ID` or `batch NUMBER` (a batch of 500, ids `NUMBER-0` to `NUMBER-499`). It runs
until it is killed. With `--hold` it only opens the store, prints `ready`, and waits.
"""

import asyncio
import sys
from pathlib import Path

from tests.builders import make_entry
from tests.databases import running_store


async def main(path: Path, *, hold: bool) -> None:
    async with running_store(path) as store:
        print("ready", flush=True)
        if hold:
            await asyncio.Event().wait()
        first = len(store.state.value.entries)
        await asyncio.gather(*(one_by_one(store, f"{first}-{caller}") for caller in range(4)), batches(store, first))


async def one_by_one(store, name: str) -> None:
    number = 0
    while True:
        number += 1
        entry = make_entry(id=f"s-{name}-{number}", spiffe_id=f"/s/{name}/{number}")
        await store.execute(lambda uow, entry=entry: uow.entries.add([entry]))
        print("one", entry.id, flush=True)


async def batches(store, first: int) -> None:
    number = first
    while True:
        number += 1
        entries = [make_entry(id=f"b-{number}-{part}", spiffe_id=f"/b/{number}/{part}") for part in range(500)]
        await store.execute(lambda uow, entries=entries: uow.entries.add(entries))
        print("batch", number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), hold="--hold" in sys.argv))
