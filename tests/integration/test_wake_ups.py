"""gRPC's wake-ups do not fill their socket while the loop is busy with a crowd (R37)."""

import subprocess
import sys

PROGRAM = """
import array, asyncio, fcntl, sys, termios, time
import grpc, grpc.aio, uvloop
from spiffe_core.wire.wake_ups import drain_wake_ups

drained = sys.argv[1] == "drained" and drain_wake_ups()
watched = []


class Loop(uvloop.Loop):
    def add_reader(self, where, *words):
        watched.append(where)  # grpc's wake-ups are what is watched first
        super().add_reader(where, *words)


def left_behind():
    found = array.array("i", [0])
    fcntl.ioctl(watched[0], termios.FIONREAD, found)
    return found[0]


async def main():
    waiting, gate = 0, asyncio.Event()

    async def answer(request, context):
        nonlocal waiting
        waiting += 1
        await gate.wait()
        return request

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"E": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.unary_unary("/t/E")
        calls = [asyncio.ensure_future(echo(b"x")) for _ in range(80)]
        while waiting < 80:
            await asyncio.sleep(0.005)
        gate.set()
        while not all(call.done() for call in calls):
            await asyncio.sleep(0)
            time.sleep(0.02)  # the loop is busy, and events of all calls come meanwhile
        rounds = 0
        while left_behind():
            await asyncio.sleep(0)
            time.sleep(0.001)
            rounds += 1
    await server.stop(0)
    print(drained, rounds)


asyncio.Runner(loop_factory=Loop).run(main())
"""


def rounds_for_nothing(how):
    """Whether wake-ups were drained, and in how many rounds one was read after all they told of was done."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=50)
    drained, rounds = done.stdout.split()
    return drained == "True", int(rounds)


def test_wake_ups_are_read_all_at_once():
    """R37: else one is read in each round, some 200 stay behind here, and 278 of them keep gRPC's own thread stuck."""
    drained, rounds = rounds_for_nothing("drained")
    assert drained
    assert rounds < 25
