"""The tables, for SQLite, PostgreSQL and MariaDB alike.

Identifiers, selectors and hints are bytes, so no collation ever decides whether two of them are equal; where a unique
or indexed key could be long, its SHA-256 stands in a column of its own. Nothing uses RETURNING or generated ids: a
`row_key` is made from the revision that created the row, so it only grows and never comes back, and lists are paged
by it. What is searched but never shown (selectors, federation) is repeated as digests in narrow side tables; the
record itself has them as one document.

Migrations (`migrations/versions`) write these tables; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BINARY,
    VARBINARY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
)
from sqlalchemy.types import TypeEngine

SCHEMA_REVISION = "0007"
"""The Alembic revision that this code is written for: the newest under `migrations/versions`."""


class _Bytes(LargeBinary):
    """Bytes as the drivers take and give them.

    SQLAlchemy's own wrapping, a Python call for each value of each row, is a seventh of a large write; `bytes` is C,
    copies nothing that is bytes already, and refuses text and None.
    """

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:  # noqa: ARG002  # SQLAlchemy's signature
        return bytes

    def result_processor(self, dialect: Dialect, coltype: object) -> None:  # noqa: ARG002  # SQLAlchemy's signature
        return None


_LONG = 2**32 - 1
"""Of a LONGBLOB: MariaDB makes the smallest kind of BLOB that holds so much. Its dialect is loaded only to use it."""

Big = BigInteger().with_variant(Integer, "sqlite")
Digest = _Bytes(32).with_variant(BINARY(32), "mysql", "mariadb")
Document = _Bytes().with_variant(LargeBinary(_LONG), "mysql", "mariadb")


def octets(length: int) -> TypeEngine[bytes]:
    """Bytes up to `length`, compared as bytes on every database."""
    return _Bytes(length).with_variant(VARBINARY(length), "mysql", "mariadb")


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

installation = Table(
    "installation",
    metadata,
    Column("id", SmallInteger, CheckConstraint("id = 1", name="one_row"), primary_key=True, autoincrement=False),
    Column("trust_domain", octets(255), nullable=False),
)

log_head = Table(
    "log_head",
    metadata,
    Column("id", SmallInteger, CheckConstraint("id = 1", name="one_row"), primary_key=True, autoincrement=False),
    Column("epoch", Big, nullable=False),  # number of this history: milliseconds since 1970 when it was begun
    Column("revision", Big, nullable=False),  # last committed revision
    Column("token", Big, nullable=False),  # token of that revision
    Column("floor", Big, nullable=False),  # lowest revision still in log_event
)

log_event = Table(  # no foreign keys and no other index: it is appended to under the lock of the head
    "log_event",
    metadata,
    Column("revision", Big, primary_key=True, autoincrement=False),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("token", Big, nullable=False),  # the same for all events of a revision
    Column("kind", SmallInteger, nullable=False),
    Column("subject", octets(2048), nullable=False),  # the key of what changed; never its content
    sqlite_with_rowid=False,
)

entry = Table(
    "entry",
    metadata,
    Column("row_key", Big, primary_key=True, autoincrement=False),
    Column("id", octets(255), nullable=False, unique=True),
    Column("similarity", Digest, nullable=False, unique=True),
    Column("spiffe_id", octets(2048), nullable=False),
    Column("spiffe_id_digest", Digest, nullable=False, index=True),
    Column("parent_id", octets(2048), nullable=False),
    Column("parent_id_digest", Digest, nullable=False, index=True),
    Column("selectors", Document, nullable=False),
    Column("selectors_digest", Digest, nullable=False),
    Column("x509_svid_ttl", Integer, nullable=False),
    Column("jwt_svid_ttl", Integer, nullable=False),
    Column("federates_with", Document, nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("downstream", Boolean, nullable=False),
    Column("expires_at", Big, nullable=False, index=True),
    Column("dns_names", Document, nullable=False),
    Column("revision_number", Big, nullable=False),
    Column("store_svid", Boolean, nullable=False),
    Column("hint", octets(1024), nullable=False),
    Column("created_at", Big, nullable=False),
    Column("disable_x509_svid_prefetch", Boolean, nullable=False),
    Column("jwt_svid_include_jti", Boolean, nullable=False),
)

entry_selector = Table(
    "entry_selector",
    metadata,
    Column("row_key", Big, ForeignKey("entry.row_key", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("digest", Digest, primary_key=True),
    Index("ix_entry_selector_digest", "digest", "row_key"),
    sqlite_with_rowid=False,
)

entry_federation = Table(
    "entry_federation",
    metadata,
    Column("row_key", Big, ForeignKey("entry.row_key", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("digest", Digest, primary_key=True),
    Index("ix_entry_federation_digest", "digest", "row_key"),
    sqlite_with_rowid=False,
)

agent = Table(
    "agent",
    metadata,
    Column("row_key", Big, primary_key=True, autoincrement=False),
    Column("digest", Digest, nullable=False, unique=True),  # of the SPIFFE ID
    Column("spiffe_id", octets(2048), nullable=False),
    Column("attestation_type", octets(255), nullable=False),
    Column("serial", octets(64), nullable=False),
    Column("expires_at", Big, nullable=False, index=True),
    Column("new_serial", octets(64), nullable=False),
    Column("new_expires_at", Big, nullable=False),
    Column("selectors", Document, nullable=False),
    Column("selectors_digest", Digest, nullable=False),
    Column("can_reattest", Boolean, nullable=False),
    Column("agent_version", octets(255), nullable=False),
)

agent_selector = Table(
    "agent_selector",
    metadata,
    Column("row_key", Big, ForeignKey("agent.row_key", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("digest", Digest, primary_key=True),
    Index("ix_agent_selector_digest", "digest", "row_key"),
    sqlite_with_rowid=False,
)

join_token = Table(
    "join_token",
    metadata,
    Column("digest", Digest, primary_key=True),  # of the token; the token itself is stored nowhere
    Column("alias_path", octets(2048), nullable=False),
    Column("expires_at", Big, nullable=False, index=True),
    Column("redeemed_key", octets(32), nullable=False),
    Column("redeemed_at", Big, nullable=False),
)

bundle = Table(
    "bundle",
    metadata,
    Column("trust_domain", octets(255), primary_key=True),
    Column("document", Document, nullable=False),
)

federation_relationship = Table(
    "federation_relationship",
    metadata,
    Column("row_key", Big, primary_key=True, autoincrement=False),
    Column("trust_domain", octets(255), nullable=False, unique=True),
    Column("endpoint_url", octets(2048), nullable=False),
    Column("profile", octets(16), nullable=False),
    Column("endpoint_spiffe_id", octets(2048), nullable=False),  # empty for https_web
)

authority = Table(
    "authority",
    metadata,
    Column("row_key", Big, primary_key=True, autoincrement=False),
    Column("authority_id", octets(128), nullable=False, unique=True),
    Column("server_id", octets(255), nullable=False, index=True),
    Column("kind", octets(16), nullable=False),
    Column("slot", octets(16), nullable=False),
    Column("status", octets(16), nullable=False),
    Column("certificate", Document, nullable=False),
    Column("upstream_chain", Document, nullable=False),
    Column("issued_at", Big, nullable=False),
    Column("not_after", Big, nullable=False),
    Column("published_at", Big, nullable=False),
    Column("tainted", Boolean, nullable=False),
    Column("anchor_id", octets(128), nullable=True),  # of the upstream root; empty or NULL if self-signed
)

authority_order = Table(  # what all servers are to do with their authorities
    "authority_order",
    metadata,
    Column("row_key", Big, primary_key=True, autoincrement=False),
    Column("order_id", octets(64), nullable=False, unique=True),
    Column("kind", octets(16), nullable=False),
    Column("verb", octets(16), nullable=False),
    Column("authority_id", octets(128), nullable=False),
    Column("key_digest", octets(32), nullable=False),  # empty unless a key is to be destroyed
    Column("actor", octets(4096), nullable=False),
    Column("created_at", Big, nullable=False),
)

authority_errand = Table(  # one server's part in an order
    "authority_errand",
    metadata,
    Column(
        "row_key", Big, ForeignKey("authority_order.row_key", ondelete="CASCADE"), primary_key=True, autoincrement=False
    ),
    Column("server_id", octets(255), primary_key=True),
    Column("status", octets(16), nullable=False),
    Column("detail", octets(4096), nullable=False),
    Column("finished_at", Big, nullable=False),
    Index("ix_authority_errand_server_id", "server_id", "status"),
)

server_settings = Table(  # what each server has set of what it issues (R39)
    "server_settings",
    metadata,
    Column("server_id", octets(255), primary_key=True),
    Column("fingerprint", Digest, nullable=False),  # of the document
    Column("document", Document, nullable=False),
    Column("written_at", Big, nullable=False),  # the server's last sign of life
)

server_progress = Table(  # how far each server's agents are; rewritten without an event unless somebody waits
    "server_progress",
    metadata,
    Column("server_id", octets(255), primary_key=True),
    Column("beat", Big, nullable=False),  # another number at each write
    Column("asked", Big, nullable=False),  # another number whenever the others are to write
    Column("written_at", Big, nullable=False, index=True),
    Column("members_digest", Digest, nullable=False),
    Column("members", Document, nullable=False),
    Column("brief", Document, nullable=False),
)
