"""A process with a datastore and a keys file, told line by line what to write; it answers with what became of it.

Run as `python -m tests.doubles.disk_process DIRECTORY`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from identity_server.keys.disk import DiskKeys
from spiffe_core.crypto.keys import KeyKind, key_digest
from spiffe_core.errors import IdentityError
from tests.builders import make_entry
from tests.databases import running_store

SLOT = "x509-CA-A"


async def answer(store, keys, word, name):
    """`entry NAME` writes an entry, `key NAME` a new key; `seen` tells which entries memory and file hold."""
    if word == "entry":
        await store.execute(lambda uow: uow.entries.add([make_entry(id=name, spiffe_id=f"/{name}")]))
        return "stored"
    if word == "key":
        before = keys.signer(SLOT)
        try:
            keys.generate(SLOT, KeyKind.EC_P256)
        except IdentityError:
            assert keys.signer(SLOT) is before
            raise
        assert key_digest(DiskKeys(Path(keys.location)).signer(SLOT).public_key()) == key_digest(
            keys.signer(SLOT).public_key()
        )
        return "stored"
    in_file = await store.read(lambda uow: [one.id for one in uow.entries.all()])
    assert set(in_file) == set(store.state.value.entries)
    return " ".join(sorted(in_file))


async def main(folder):
    """Serve until standard input ends."""
    keys = DiskKeys(folder / "keys.json")
    async with running_store(folder / "datastore.sqlite3") as store:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                print(await answer(store, keys, *line.split()), flush=True)
            except IdentityError as error:
                print(f"{type(error).__name__}: {error.public} {error.facts}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
