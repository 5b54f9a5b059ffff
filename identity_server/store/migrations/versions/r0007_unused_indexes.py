"""Drop two indexes that no statement uses: sets of selectors are compared by their side tables.

Digests come in no order, so each new row changed a page of its own in them.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("entry", "agent"):
        op.drop_index(f"ix_{table}_selectors_digest", table_name=table)
