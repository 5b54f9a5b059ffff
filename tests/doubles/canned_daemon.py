"""A daemon with canned answers on a Unix socket, in a thread of its own, for testing command lines that block."""

import asyncio
import threading
from contextlib import contextmanager

import grpc.aio
import pytest

from spiffe_core.wire.services import handlers
from spiffe_core.wire.status import ErrorInterceptor


@contextmanager
def canned_daemon(socket_path, services):
    """Serve {service descriptor: object with methods} at `socket_path` until the block ends."""
    started, stop, loops, failures = threading.Event(), asyncio.Event(), [], []

    async def serve():
        loops.append(asyncio.get_running_loop())
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        server.add_generic_rpc_handlers([handlers(service, answers) for service, answers in services.items()])
        server.add_insecure_port(f"unix:{socket_path}")
        await server.start()
        started.set()
        await stop.wait()
        await server.stop(None)

    def work():
        try:
            asyncio.run(serve())
        except BaseException as error:
            failures.append(error)
            started.set()

    thread = threading.Thread(target=work, name="canned daemon")
    thread.start()
    try:
        assert started.wait(10)
        assert not failures, failures
        yield str(socket_path)
    finally:
        if loops and not loops[0].is_closed():
            loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)
    assert not failures, failures


def leave_code(main, *words):
    """Run a command line in this process; its exit code."""
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return left.value.code or 0
