"""Groups for TLS key exchange, which Python's ssl cannot set before 3.15: OpenSSL is told by a configuration file.

OpenSSL reads it once, when Python's ssl is imported. So a command says so first of all, and takes the variable back
before another library with an OpenSSL of its own is loaded, or a process started. Whoever sets OPENSSL_CONF, or runs a
kernel in FIPS mode, has chosen otherwise and is left alone.

There are two files because a group that OpenSSL does not know leaves an error in its queue with each new context, and
Python's ssl takes that for the failure of whatever it does next.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_VARIABLE = "OPENSSL_CONF"
_HYBRID = Path(__file__).with_name("openssl.cnf")
_CLASSIC = Path(__file__).with_name("openssl-classic.cnf")
_KNOWS_HYBRID = 0x3050_0000
"""OpenSSL 3.5.0, the first with X25519MLKEM768."""
_FIPS = Path("/proc/sys/crypto/fips_enabled")


def choose_groups() -> None:
    """To be called before ssl is imported; later it is too late and nothing happens."""
    if _VARIABLE not in os.environ and "_ssl" not in sys.modules and not _fips():
        os.environ[_VARIABLE] = str(_HYBRID if _version() >= _KNOWS_HYBRID else _CLASSIC)


def groups_chosen() -> None:
    """Import ssl, if nobody has yet, and take the variable back."""
    import ssl  # noqa: F401  # what reads the file

    if os.environ.get(_VARIABLE) in {str(_HYBRID), str(_CLASSIC)}:
        del os.environ[_VARIABLE]


def _version() -> int:
    """The version of the OpenSSL that Python's ssl will use, asked without starting it; 0 if it cannot be told."""
    import ctypes

    module = importlib.util.find_spec("_ssl")
    place = module.origin if module is not None and module.has_location else None
    try:
        return int(ctypes.CDLL(place).OpenSSL_version_num())
    except (OSError, AttributeError):
        return 0


def _fips() -> bool:
    try:
        return _FIPS.read_text().strip() == "1"
    except OSError:
        return False
