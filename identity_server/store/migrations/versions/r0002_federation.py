"""Federation relationships: where the bundles of other trust domains are fetched."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def octets(length: int) -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "federation_relationship",
        sa.Column("row_key", BIG, autoincrement=False, nullable=False),
        sa.Column("trust_domain", octets(255), nullable=False),
        sa.Column("endpoint_url", octets(2048), nullable=False),
        sa.Column("profile", octets(16), nullable=False),
        sa.Column("endpoint_spiffe_id", octets(2048), nullable=False),
        sa.PrimaryKeyConstraint("row_key", name="pk_federation_relationship"),
        sa.UniqueConstraint("trust_domain", name="uq_federation_relationship_trust_domain"),
    )
