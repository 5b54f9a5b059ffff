"""Where the authorities' private keys are kept: in memory, in one private file, or in a PKCS#11 token.

All implement `ports.KeyManager`. A slot is a name such as `x509-CA-A`; generating a key replaces what the slot held.
Callers may read (`signer`, `list`) from any thread while one thread changes keys: the mapping is replaced, never
altered. `identity_server.keys.pkcs11` is imported only when it is configured: it needs the extra `pkcs11`.
"""

from identity_server.keys.disk import MAX_FILE_BYTES, DiskKeys, set_aside
from identity_server.keys.memory import MemoryKeys
from identity_server.keys.slots import MAX_SLOTS

__all__ = ["MAX_FILE_BYTES", "MAX_SLOTS", "DiskKeys", "MemoryKeys", "set_aside"]
