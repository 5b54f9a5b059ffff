"""The shape of a pre-encoded body: reads one again in a single pass and says whether it is exactly what was planned.

A `Shape` is a pattern with the constant parts of a body the full lint passed written out, and groups for the rest. It
shares no code with the encoder. What the pattern leaves open is then settled: every length is the shortest form of
the size of what it heads (X.690 section 10.1), from the innermost outwards, and every value is the planned one. A
`False` says no more than that; which rule was broken is for `Body.lint` to find out.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from identity_server.domain.profiles import MAX_SERIAL, Parent, Plan
from spiffe_core.crypto.keys import P256_SPKI_PREFIX

_LENGTH = rb"([\x00-\x7f]|\x81[\x80-\xff]|\x82[\x01-\xff].)"
_TIME = rb"\x17\x0d(\d{12})Z"
_SAN_OID = bytes.fromhex("0603551d11")
_KEY_ID = bytes.fromhex("301d0603551d0e04160414")
_KEY_ID_BYTES = len(_KEY_ID) + 20
_POINT_AT = len(P256_SPKI_PREFIX) - 1
_CENTURY_TURN = b"50"
_SHORT_FORM, _ONE_BYTE = 0x80, 0x100


@dataclass(frozen=True, slots=True)
class Shape:
    """What a body of one authority looks like."""

    parent: Parent
    pattern: re.Pattern[bytes]
    fixed: int
    """Bytes in the extensions beside the subject alternative name."""

    @classmethod
    def of(cls, parent: Parent, version: bytes, middle: bytes, subject: bytes, before: bytes, between: bytes) -> Shape:
        """From the constant parts: `middle` is algorithm and issuer, the last two stand around the subject key id."""
        pattern = b"".join(
            (
                b"\\x30" + _LENGTH + re.escape(version),
                rb"\x02([\x01-\x11])(.{1,17}?)" + re.escape(middle),
                rb"\x30\x1e" + _TIME + _TIME + re.escape(subject),
                b"(" + re.escape(P256_SPKI_PREFIX) + b".{64})",
                rb"\xa3" + _LENGTH + b"\\x30" + _LENGTH + re.escape(before),
                re.escape(_KEY_ID) + b"(.{20})" + re.escape(between),
                b"\\x30" + _LENGTH + re.escape(_SAN_OID) + rb"\x04" + _LENGTH + b"\\x30" + _LENGTH,
                rb"\x86" + _LENGTH + rb"([\x21-\x7e]+)",
            )
        )
        return cls(parent, re.compile(pattern, re.DOTALL), len(before) + _KEY_ID_BYTES + len(between))

    def says(self, tbs: bytes, plan: Plan) -> bool:
        """Whether `tbs` is a body of this shape that says what was planned, and that may be said."""
        read = self.pattern.fullmatch(tbs)
        if read is None or plan.parent is not self.parent:
            return False
        whole, size, serial, begins, ends, spki, outer, inner, key_id, san, octets, names, uri, name = read.groups()
        return (
            (outer, inner, san, octets, names, uri) == _lengths(self.fixed, len(name))
            and name == str(plan.spiffe_id).encode()
            and whole == _length(len(tbs) - 1 - len(whole))
            and size == _length(len(serial))
            and len(serial) == plan.serial.bit_length() // 8 + 1
            and int.from_bytes(serial, signed=True) == plan.serial
            and 1 <= plan.serial <= MAX_SERIAL
            and (_moment(begins), _moment(ends)) == (plan.not_before, plan.not_after)
            and plan.not_before < plan.not_after <= self.parent.not_after
            and spki == plan.spki != self.parent.spki
            and key_id == hashlib.sha1(spki[_POINT_AT:], usedforsecurity=False).digest()
            and bool(plan.spiffe_id.path)
            and plan.spiffe_id.trust_domain == self.parent.trust_domain
        )


@lru_cache(maxsize=4096)
def _lengths(fixed: int, name: int) -> tuple[bytes, ...]:
    """What must head the extensions, outermost first, down to a name of so many bytes; `fixed` as in `Shape`."""
    size, found = name, []
    for _ in ("URI", "names", "octets"):
        found.append(_length(size))
        size += 1 + len(found[-1])
    size += len(_SAN_OID)
    found.append(_length(size))
    size += 1 + len(found[-1]) + fixed
    found.append(_length(size))
    found.append(_length(size + 1 + len(found[-1])))
    return tuple(reversed(found))


@lru_cache(maxsize=4096)
def _length(size: int) -> bytes:
    """The one DER form of a length below 65,536 (X.690 section 10.1); empty, which heads nothing, above."""
    if size < _SHORT_FORM:
        return bytes((size,))
    if size < _ONE_BYTE:
        return bytes((0x81, size))
    return b"\x82" + size.to_bytes(2) if size < 1 << 16 else b""


@lru_cache(maxsize=4096)
def _moment(digits: bytes) -> int:
    """YYMMDDHHMMSS of this century in unix seconds; -1 for what is no moment of it."""
    if digits[:2] >= _CENTURY_TURN:
        return -1
    try:
        return int(datetime.strptime(f"20{digits.decode()}+0000", "%Y%m%d%H%M%S%z").astimezone(UTC).timestamp())
    except ValueError:
        return -1
