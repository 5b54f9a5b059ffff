"""spiffe_core.wire."""
