"""What each server has set of what it issues, so that the others can compare."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def octets(length: int) -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "server_settings",
        sa.Column("server_id", octets(255), nullable=False),
        sa.Column(
            "fingerprint", sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb"), nullable=False
        ),
        sa.Column("document", sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"), nullable=False),
        sa.Column("written_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("server_id", name="pk_server_settings"),
    )
