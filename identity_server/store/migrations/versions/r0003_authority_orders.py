"""Orders to all servers: what each is to do with its authorities, and what it has done."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def octets(length: int) -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "authority_order",
        sa.Column("row_key", BIG, autoincrement=False, nullable=False),
        sa.Column("order_id", octets(64), nullable=False),
        sa.Column("kind", octets(16), nullable=False),
        sa.Column("verb", octets(16), nullable=False),
        sa.Column("authority_id", octets(128), nullable=False),
        sa.Column("key_digest", octets(32), nullable=False),
        sa.Column("actor", octets(4096), nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("row_key", name="pk_authority_order"),
        sa.UniqueConstraint("order_id", name="uq_authority_order_order_id"),
    )
    op.create_table(
        "authority_errand",
        sa.Column("row_key", BIG, autoincrement=False, nullable=False),
        sa.Column("server_id", octets(255), nullable=False),
        sa.Column("status", octets(16), nullable=False),
        sa.Column("detail", octets(4096), nullable=False),
        sa.Column("finished_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("row_key", "server_id", name="pk_authority_errand"),
        sa.ForeignKeyConstraint(
            ["row_key"], ["authority_order.row_key"], name="fk_authority_errand_row_key", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_authority_errand_server_id", "authority_errand", ["server_id", "status"])
