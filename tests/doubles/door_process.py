"""`python -m tests.doubles.door_process PATH`: the door service as a process of its own, so that its CPU can be measured."""

import asyncio
import sys
from pathlib import Path

import uvloop

from spiffe_core.wire.front_door import FrontDoor
from tests.doubles.door_service import serve


async def main(path: Path) -> None:
    door = FrontDoor()
    held = await serve(door)  # a gRPC server that nobody holds stops
    door.listen_unix(path)
    print("ready", flush=True)
    await asyncio.Event().wait()
    del held


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
