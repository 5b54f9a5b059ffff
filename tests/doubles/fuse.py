"""A file system of one program that stops answering when told (FUSE protocol 7.31, linux/fuse.h)."""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from pathlib import Path

_LOOKUP, _FORGET, _GETATTR, _STATFS, _OPEN, _READ, _RELEASE, _FLUSH, _INIT = 1, 2, 3, 17, 14, 15, 18, 25, 26
_INTERRUPT, _BATCH_FORGET = 36, 42
_SILENT = {_FORGET, _INTERRUPT, _BATCH_FORGET}
_ROOT, _FILE = 1, 2
_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def missing():
    """Why no FUSE file system can be mounted here; "" if it can."""
    return "" if os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK) else "needs root and /dev/fuse"


class OneProgram:
    """Serves `content` as `<folder>/program`. While `hold` is set no request is answered.

    Except that a file was let go of: the kernel says so some time after the last close, and nobody waits for it.
    """

    def __init__(self, folder: Path, content: bytes) -> None:
        self.program = folder / "program"
        self.hold = threading.Event()
        self.go_on = threading.Event()
        self.held = threading.Event()
        """Set when a request has come and is not answered."""
        self._content, self._folder = content, folder
        self._fd = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fd},rootmode=40755,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"test", os.fsencode(folder), b"fuse.test", 0, options.encode()):
            os.close(self._fd)
            raise OSError(ctypes.get_errno(), "mount")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.go_on.set()
        _libc.umount2(os.fsencode(self._folder), _DETACH)
        self._thread.join(10)
        os.close(self._fd)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, 1 << 20)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.EINTR}:
                    continue
                return  # unmounted
            _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
            if self.hold.is_set() and opcode not in _SILENT and opcode != _RELEASE:
                self.held.set()
                self.go_on.wait()
            if opcode in _SILENT:
                continue
            number, body = self._answer(opcode, node, request[40:])
            with contextlib.suppress(OSError):  # whoever asked has gone
                os.write(self._fd, struct.pack("=IiQ", 16 + len(body), -number, unique) + body)

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        if opcode == _LOOKUP and body.rstrip(b"\0") != b"program":
            return errno.ENOENT, b""
        if opcode == _READ:
            offset, size = struct.unpack_from("=QI", body, 8)
            return 0, self._content[offset : offset + size]
        answers = {
            _INIT: struct.pack("=IIIIHHIIHHI28x", 7, 31, 65536, 0, 16, 12, 65536, 1, 16, 0, 0),
            _LOOKUP: struct.pack("=QQQQII", _FILE, 0, 0, 0, 0, 0) + self._attributes(_FILE),
            _GETATTR: struct.pack("=QII", 0, 0, 0) + self._attributes(node),
            _OPEN: struct.pack("=QII", 1, 0, 0),
            _STATFS: bytes(80),
            _RELEASE: b"",
            _FLUSH: b"",
        }
        return (0, answers[opcode]) if opcode in answers else (errno.ENOSYS, b"")

    def _attributes(self, node: int) -> bytes:
        """Valid for no time at all, so that whoever wants to know asks again."""
        file = node == _FILE
        mode = (stat.S_IFREG if file else stat.S_IFDIR) | 0o755
        size = len(self._content) if file else 0
        return struct.pack("=6Q10I", node, size, 0, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
