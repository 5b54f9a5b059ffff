"""spiffe_core.crypto."""
