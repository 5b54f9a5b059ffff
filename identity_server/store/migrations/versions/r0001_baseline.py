"""The first schema: head and events of the log, entries, agents, join tokens, bundles, authorities."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DIGEST = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
DOCUMENT = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def octets(length: int) -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def side_table(name: str, owner: str) -> None:
    op.create_table(
        name,
        sa.Column("row_key", BIG, autoincrement=False, nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.ForeignKeyConstraint(["row_key"], [f"{owner}.row_key"], name=f"fk_{name}_row_key", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("row_key", "digest", name=f"pk_{name}"),
        sqlite_with_rowid=False,
    )
    op.create_index(f"ix_{name}_digest", name, ["digest", "row_key"])


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("trust_domain", octets(255), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_installation_one_row"),
        sa.PrimaryKeyConstraint("id", name="pk_installation"),
    )
    op.create_table(
        "log_head",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", BIG, nullable=False),
        sa.Column("revision", BIG, nullable=False),
        sa.Column("token", BIG, nullable=False),
        sa.Column("floor", BIG, nullable=False),
        sa.CheckConstraint("id = 1", name="ck_log_head_one_row"),
        sa.PrimaryKeyConstraint("id", name="pk_log_head"),
        # one row, updated by every transaction: keep its versions on one page and vacuum them often
        postgresql_with={
            "fillfactor": "10",
            "autovacuum_vacuum_threshold": "1000",
            "autovacuum_vacuum_scale_factor": "0",
        },
    )
    op.create_table(
        "log_event",
        sa.Column("revision", BIG, autoincrement=False, nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("token", BIG, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("subject", octets(2048), nullable=False),
        sa.PrimaryKeyConstraint("revision", "seq", name="pk_log_event"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "entry",
        sa.Column("row_key", BIG, autoincrement=False, nullable=False),
        sa.Column("id", octets(255), nullable=False),
        sa.Column("similarity", DIGEST, nullable=False),
        sa.Column("spiffe_id", octets(2048), nullable=False),
        sa.Column("spiffe_id_digest", DIGEST, nullable=False),
        sa.Column("parent_id", octets(2048), nullable=False),
        sa.Column("parent_id_digest", DIGEST, nullable=False),
        sa.Column("selectors", DOCUMENT, nullable=False),
        sa.Column("selectors_digest", DIGEST, nullable=False),
        sa.Column("x509_svid_ttl", sa.Integer(), nullable=False),
        sa.Column("jwt_svid_ttl", sa.Integer(), nullable=False),
        sa.Column("federates_with", DOCUMENT, nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("downstream", sa.Boolean(), nullable=False),
        sa.Column("expires_at", BIG, nullable=False),
        sa.Column("dns_names", DOCUMENT, nullable=False),
        sa.Column("revision_number", BIG, nullable=False),
        sa.Column("store_svid", sa.Boolean(), nullable=False),
        sa.Column("hint", octets(1024), nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("disable_x509_svid_prefetch", sa.Boolean(), nullable=False),
        sa.Column("jwt_svid_include_jti", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("row_key", name="pk_entry"),
        sa.UniqueConstraint("id", name="uq_entry_id"),
        sa.UniqueConstraint("similarity", name="uq_entry_similarity"),
    )
    for column in ("spiffe_id_digest", "parent_id_digest", "selectors_digest", "expires_at"):
        op.create_index(f"ix_entry_{column}", "entry", [column])
    side_table("entry_selector", "entry")
    side_table("entry_federation", "entry")
    op.create_table(
        "agent",
        sa.Column("row_key", BIG, autoincrement=False, nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("spiffe_id", octets(2048), nullable=False),
        sa.Column("attestation_type", octets(255), nullable=False),
        sa.Column("serial", octets(64), nullable=False),
        sa.Column("expires_at", BIG, nullable=False),
        sa.Column("new_serial", octets(64), nullable=False),
        sa.Column("new_expires_at", BIG, nullable=False),
        sa.Column("selectors", DOCUMENT, nullable=False),
        sa.Column("selectors_digest", DIGEST, nullable=False),
        sa.Column("can_reattest", sa.Boolean(), nullable=False),
        sa.Column("agent_version", octets(255), nullable=False),
        sa.PrimaryKeyConstraint("row_key", name="pk_agent"),
        sa.UniqueConstraint("digest", name="uq_agent_digest"),
    )
    for column in ("expires_at", "selectors_digest"):
        op.create_index(f"ix_agent_{column}", "agent", [column])
    side_table("agent_selector", "agent")
    op.create_table(
        "join_token",
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("alias_path", octets(2048), nullable=False),
        sa.Column("expires_at", BIG, nullable=False),
        sa.Column("redeemed_key", octets(32), nullable=False),
        sa.Column("redeemed_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_join_token"),
    )
    op.create_index("ix_join_token_expires_at", "join_token", ["expires_at"])
    op.create_table(
        "bundle",
        sa.Column("trust_domain", octets(255), nullable=False),
        sa.Column("document", DOCUMENT, nullable=False),
        sa.PrimaryKeyConstraint("trust_domain", name="pk_bundle"),
    )
    op.create_table(
        "authority",
        sa.Column("row_key", BIG, autoincrement=False, nullable=False),
        sa.Column("authority_id", octets(128), nullable=False),
        sa.Column("server_id", octets(255), nullable=False),
        sa.Column("kind", octets(16), nullable=False),
        sa.Column("slot", octets(16), nullable=False),
        sa.Column("status", octets(16), nullable=False),
        sa.Column("certificate", DOCUMENT, nullable=False),
        sa.Column("upstream_chain", DOCUMENT, nullable=False),
        sa.Column("issued_at", BIG, nullable=False),
        sa.Column("not_after", BIG, nullable=False),
        sa.Column("published_at", BIG, nullable=False),
        sa.Column("tainted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("row_key", name="pk_authority"),
        sa.UniqueConstraint("authority_id", name="uq_authority_authority_id"),
    )
    op.create_index("ix_authority_server_id", "authority", ["server_id"])
