"""Groups for TLS key exchange, which Python's ssl cannot set before 3.15: OpenSSL is told by a configuration file.

OpenSSL reads it once, when Python's ssl is imported. So a command says so first of all, and takes the variable back
before another library with an OpenSSL of its own is loaded, or a process started. Whoever sets OPENSSL_CONF, or runs a
kernel in FIPS mode, has chosen otherwise and is left alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_VARIABLE = "OPENSSL_CONF"
_FILE = Path(__file__).with_name("openssl.cnf")
_FIPS = Path("/proc/sys/crypto/fips_enabled")


def choose_groups() -> None:
    """To be called before ssl is imported; later it is too late and nothing happens."""
    if _VARIABLE not in os.environ and "_ssl" not in sys.modules and not _fips():
        os.environ[_VARIABLE] = str(_FILE)


def groups_chosen() -> None:
    """Import ssl, if nobody has yet, and take the variable back."""
    import ssl  # noqa: F401  # what reads the file

    if os.environ.get(_VARIABLE) == str(_FILE):
        del os.environ[_VARIABLE]


def _fips() -> bool:
    try:
        return _FIPS.read_text().strip() == "1"
    except OSError:
        return False
