"""Run in a network namespace of its own (unshare --net): a web listener, and clients at several IPv6 addresses.

Prints for each client, in the order of ADDRESSES, whether it was served while those before it hold their connections.
"""

import asyncio
import contextlib
import fcntl
import ipaddress
import json
import socket
import struct

from identity_server.web.documents import Document, Site
from identity_server.web.listener import WebLimits, WebListener
from spiffe_core.clock import SystemClock
from tests.doubles.https_reader import Reader

ADDRESSES = ("2001:db8::1", "2001:db8::2", "2001:db8::ffff:3", "2001:db8:0:1::1")
"""Three of one /64, and one of the next."""
CONNECTIONS = 8
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCGIFINDEX = 0x8913, 0x8914, 0x8916, 0x8933
IFF_UP = 1


def configure():
    """The loopback device up, with all addresses (netdevice(7))."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        flags = struct.unpack("16sh", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0)))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))
        index = struct.unpack("16si", fcntl.ioctl(control, SIOCGIFINDEX, struct.pack("16si", b"lo", 0)))[1]
        for address in ADDRESSES:
            packed = ipaddress.IPv6Address(address).packed
            fcntl.ioctl(control, SIOCSIFADDR, struct.pack("16sIi", packed, 128, index))


async def usable():
    """Return when the kernel takes all addresses for its own, which is a moment after it was told of them."""
    for address in ADDRESSES:
        while True:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
                probe.bind((address, 0))
                break
            await asyncio.sleep(0.01)


async def served(address, port, held):
    """Whether a client at `address` is answered; its connection stays open until `held` is closed."""
    reader = Reader(*await asyncio.open_connection(ADDRESSES[0], port, local_addr=(address, 0)))
    held.push_async_callback(reader.close)
    try:
        return (await reader.ask()).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False


async def main():
    configure()
    async with asyncio.timeout(30):
        await usable()
    site, limits = Site(lambda _: Document(b"{}")), WebLimits(connections=CONNECTIONS)
    listener = WebListener(site, tls=None, now=SystemClock().now, limits=limits)
    _, port = listener.listen(ADDRESSES[0], 0, field="x")
    async with contextlib.AsyncExitStack() as held:
        print(json.dumps([await served(address, port, held) for address in ADDRESSES]))
    await listener.close()


if __name__ == "__main__":
    asyncio.run(main())
