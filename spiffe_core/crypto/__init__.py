"""Keys, signing requests and certificates as values, on top of `cryptography`.

    keys                which kinds exist, how they are written, which are believed
    algorithms          which signatures are believed
    csr                 PKCS#10 requests, made and checked
    certificates        X.509 certificates, read once and strictly
    name_constraints    what a CA may restrict
    jwk                 public keys as JSON Web Keys

Encodings that `cryptography` still reads with a deprecation warning (a serial number that is not positive, a NULL where
nothing belongs) are refused here: the filter below turns these warnings into errors for the modules of this package and
for nobody else.
"""

from __future__ import annotations

import warnings

from cryptography.utils import CryptographyDeprecationWarning

warnings.filterwarnings("error", category=CryptographyDeprecationWarning, module=r"spiffe_core\.crypto\.")
