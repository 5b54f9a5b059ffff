"""The worker process: reads orders from the socket it inherited, and signs until the other end is gone.

    python -m identity_server.signing.worker FD

It opens nothing, listens nowhere and logs nothing. What goes wrong with one order is answered with "not signed", and
the server then finds out why by doing it itself.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
from dataclasses import replace
from typing import BinaryIO

from identity_server.domain.issuance import parent_of
from identity_server.domain.leaf_order import LeafOrder, SignedLeaf, SigningKey, signed
from identity_server.signing.frames import PREFIX, Frame, decode, leaves_frame, order_of, sizes
from spiffe_core.crypto.csr import proven_key
from spiffe_core.crypto.keys import authority_from_pkcs8
from spiffe_core.errors import IdentityError
from spiffe_core.runtime.process import refuse_dumps

_PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Serve one socket to its end."""
    # prctl(2): no orphan keeps a CA's key, even one that is stopped; "parent" is the thread that started us
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    refuse_dumps()
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C reaches us as well; the server decides
        signal.signal(number, signal.SIG_IGN)
    link = socket.socket(fileno=descriptor)
    with link, link.makefile("rb") as orders:
        gc.freeze()
        serve(orders, link)


def serve(orders: BinaryIO, link: socket.socket) -> None:
    """Answer every order until the server closes its end."""
    key: SigningKey | None = None
    taken: frozenset[str] = frozenset()
    while (frame := _read(orders)) is not None:
        if frame.header["do"] == "key":
            key, taken = _key(frame), frozenset(frame.header["taken"])
            continue
        assert key is not None, "the key comes before the first order"
        wanted = [order_of(key.parent.trust_domain, one) for one in frame.header["orders"]]
        leaves = [_leaf(key, taken, order, csr) for order, csr in zip(wanted, frame.blobs, strict=True)]
        link.sendall(leaves_frame(frame.header["number"], leaves))


def _key(frame: Frame) -> SigningKey:
    certificate, pkcs8 = frame.blobs
    parent = replace(parent_of(certificate), not_after=frame.header["not_after"])
    return SigningKey(certificate, parent, authority_from_pkcs8(pkcs8, field="key"))


def _leaf(key: SigningKey, taken: frozenset[str], order: LeafOrder, csr: bytes) -> SignedLeaf | None:
    try:
        return signed(key, order, proven_key(csr), taken)
    except IdentityError:
        return None


def _read(orders: BinaryIO) -> Frame | None:
    """The next frame; None when the server is gone."""
    prefix = orders.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    body, head = sizes(prefix)
    data = orders.read(body)
    return decode(data, head) if len(data) == body else None


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)
