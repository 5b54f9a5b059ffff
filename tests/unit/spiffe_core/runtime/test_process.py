"""What a daemon asks of its kernel and its C library at start."""

import os
import subprocess
import sys

import pytest

MEMORY = """
import ctypes, pathlib
from spiffe_core.runtime.process import hand_back_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def used(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 // 1024**2

if HAND_BACK:
    hand_back_memory()
libc.free(used(20 << 20))
before = resident()
blocks = [used(1 << 20) for _ in range(16)]
for block in blocks:
    libc.free(block)
print(resident() - before)
"""


@pytest.mark.skipif(
    "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="only glibc keeps what was freed after a large block",
)
@pytest.mark.parametrize(("hand_back", "kept"), [(False, range(15, 20)), (True, range(-1, 3))], ids=["not", "asked"])
def test_freed_memory_goes_back_to_the_kernel_though_a_large_block_was_freed_before(hand_back, kept):
    """B11a: 16 MB in smaller blocks, after an answer of 20 MB."""
    program = MEMORY.replace("HAND_BACK", str(hand_back))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) in kept
