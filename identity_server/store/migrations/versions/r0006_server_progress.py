"""How far each server's agents are, so that whoever waits for a change can count the agents of all servers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def octets(length: int) -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def document() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "server_progress",
        sa.Column("server_id", octets(255), nullable=False),
        sa.Column("beat", BIG, nullable=False),
        sa.Column("asked", BIG, nullable=False),
        sa.Column("written_at", BIG, nullable=False),
        sa.Column(
            "members_digest", sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb"), nullable=False
        ),
        sa.Column("members", document(), nullable=False),
        sa.Column("brief", document(), nullable=False),
        sa.PrimaryKeyConstraint("server_id", name="pk_server_progress"),
    )
    op.create_index("ix_server_progress_written_at", "server_progress", ["written_at"])
