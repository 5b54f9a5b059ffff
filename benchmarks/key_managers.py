"""`python benchmarks/key_managers.py`: signatures and finished leaves per second, by key manager and kind of key.

The token is a SoftHSM2 in a directory of its own; rows for it are left out where that is not installed. CPU time of this
process; all rows of one run, so that their ratios mean something on a busy machine.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from identity_server.domain.body import Bodies
from identity_server.domain.issuance import parent_of, prepare, sign
from identity_server.domain.profiles import Profile, plan_ca, plan_leaf
from identity_server.keys import MemoryKeys
from identity_server.ports import KeyManager
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

TD = TrustDomain("bench.test")
NOW = 1_800_000_000
SECONDS = 1.5
KINDS = tuple(KeyKind)


def rate(work: Callable[[], object]) -> tuple[float, float]:
    """Calls per second of wall time, and microseconds of CPU time per call."""
    work()
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < SECONDS:
        work()
        count += 1
    return count / (time.perf_counter() - wall), (time.process_time() - cpu) / count * 1e6


def measure(name: str, keys: KeyManager, kind: KeyKind) -> None:
    public = keys.generate("x509-CA-A", kind)
    key = keys.signer("x509-CA-A")
    assert key is not None
    authority = sign(prepare(plan_ca(TD, public, lifetime=86_400, now=NOW, serial=1)), key)
    parent, bodies, workload = parent_of(authority), Bodies(), generate(KeyKind.EC_P256).public_key()
    serials = iter(range(2, 10_000_000))

    def leaf() -> object:
        plan = plan_leaf(
            Profile.WORKLOAD, parent, SpiffeId(TD, "/w"), workload, ttl=3_600, now=NOW, serial=next(serials)
        )
        return sign(bodies.prepare(plan), key)

    per_second, micros = rate(leaf)
    print(f"| {kind.value} | {name} | {per_second:,.0f} | {micros:,.0f} |", flush=True)


def main() -> None:
    print("| authority's key | manager | leaves/s | CPU-µs each |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        token = _token(Path(folder))
        for kind in KINDS:
            measure("memory, disk", MemoryKeys(), kind)
            if token is not None and not kind.post_quantum:
                measure("pkcs11 (SoftHSM2)", token, kind)


def _token(folder: Path) -> KeyManager | None:
    from tests.softhsm import MODULE, soft_token

    return soft_token(folder / "token").keys() if MODULE.exists() else None


if __name__ == "__main__":
    main()
