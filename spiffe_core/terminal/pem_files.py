"""Certificates and keys as PEM, on screen and in a directory of the operator's choice.

Files have fixed names in a directory that must exist. Nothing is followed: a symbolic link as the directory or at a
file's name is refused, as are `..` in the path and a directory that others may write to. Each file appears complete or
not at all; keys are 0600 from their first byte.
"""

from __future__ import annotations

import base64
import os
import stat
import textwrap
from pathlib import Path

from spiffe_core.errors import IdentityError, InvalidCertificate
from spiffe_core.runtime.durable import write_durably
from spiffe_core.terminal.failures import Failure

PUBLIC = 0o644
PRIVATE = 0o600


def pem(label: str, der: bytes) -> str:
    """One PEM block (RFC 7468)."""
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"


def certificates_pem(certificates: tuple[bytes, ...] | list[bytes]) -> str:
    """Certificates one after the other."""
    return "".join(pem("CERTIFICATE", der) for der in certificates)


def split_der(data: bytes, *, field: str) -> list[bytes]:
    """Take concatenated DER values apart by their length headers; what is inside is not looked at.

    Raises:
        InvalidCertificate: the bytes are not a sequence of complete DER SEQUENCEs.
    """
    parts: list[bytes] = []
    position = 0
    while position < len(data):
        header = data[position : position + 6]
        if len(header) < 2 or header[0] != 0x30:  # noqa: PLR2004  # tag and length; 0x30 is SEQUENCE
            raise InvalidCertificate(f"{field}: is not a concatenation of DER certificates", field=field)
        size, width = header[1], 2
        if size & 0x80:
            extra = size & 0x7F
            if not 1 <= extra <= 4 or len(header) < 2 + extra:  # noqa: PLR2004  # up to four length octets
                raise InvalidCertificate(f"{field}: has a DER length that cannot be read", field=field)
            size, width = int.from_bytes(header[2 : 2 + extra], "big"), 2 + extra
        end = position + width + size
        if end > len(data):
            raise InvalidCertificate(f"{field}: ends in the middle of a certificate", field=field)
        parts.append(data[position:end])
        position = end
    return parts


def output_directory(text: str) -> Path:
    """The directory that files are written to.

    Raises:
        Failure: it is missing, not a plain directory, or reached in a roundabout way.
    """
    path = Path(text)
    if not text or "\0" in text:
        raise Failure("--write: the directory has no name", "give the path of an existing directory")
    if ".." in path.parts:
        raise Failure(f"--write: {text} goes up with '..'", f"give the path itself: {os.path.realpath(path)}")
    try:
        found = path.lstat()
    except OSError as error:
        raise Failure(f"--write: {text}: {error.strerror}", f"create it first: mkdir -m 0700 {text}") from None
    if stat.S_ISLNK(found.st_mode):
        raise Failure(f"--write: {text} is a symbolic link", f"give the directory itself: {os.path.realpath(path)}")
    if not stat.S_ISDIR(found.st_mode):
        raise Failure(f"--write: {text} is not a directory", "give the path of an existing directory")
    return path


def write_files(directory: Path, files: dict[str, tuple[str, int]]) -> list[Path]:
    """Write texts under plain names, each with its mode; the paths in the order given.

    Raises:
        Failure: one of them could not be written; those before it are complete.
    """
    written = []
    for name, (text, mode) in files.items():
        if Path(name).name != name or name in {"", ".."}:
            raise Failure(f"{name} is not a plain file name", "")
        target = directory / name
        try:
            write_durably(target, text.encode(), mode)
        except IdentityError as error:
            raise Failure(f"--write: {error.public}", "") from None
        written.append(target)
    return written
