"""Schema changes: forward only, run when the store opens (Alembic)."""
