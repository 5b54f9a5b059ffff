"""spiffe_core."""
