"""spiffe_core.runtime."""
