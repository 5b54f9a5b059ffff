"""What an x509pop node sends first."""

from __future__ import annotations

import base64
import json

DIGEST = b"k" * 32
"""Of the key in the certificate request: x509pop's evidence does not depend on it."""


def payload(*ders: bytes, **over: object) -> bytes:
    return json.dumps({"certificates": [base64.b64encode(der).decode() for der in ders], **over}).encode()
