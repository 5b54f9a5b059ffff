"""Join tokens, trust bundles, federation relationships and authorities in the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, bindparam, case, delete, func, insert, select, update

from identity_server.domain.authority import Authority, AuthorityKind
from identity_server.domain.federation import FederationRelationship
from identity_server.domain.join_tokens import JoinToken
from identity_server.domain.listing import Page
from identity_server.store.entry_repository import chunks
from identity_server.store.event_log import EventKind, Recorder
from identity_server.store.mapping import (
    authority_of,
    authority_values,
    bundle_of,
    bundle_values,
    join_token_of,
    join_token_values,
    relationship_of,
    relationship_values,
)
from identity_server.store.paging import page_of
from identity_server.store.schema import authority, bundle, federation_relationship, join_token
from identity_server.store.selection import foreign_token
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import Conflict, InvalidId
from spiffe_core.spiffe_id import TrustDomain

PRUNE_AT_MOST = 1_000

_TOKEN = select(join_token).where(join_token.c.digest == bindparam("of"))
_REDEEM = (
    update(join_token)
    .where(
        join_token.c.digest == bindparam("of"),
        ((join_token.c.redeemed_at == 0) & (join_token.c.expires_at > bindparam("now")))
        | (
            (join_token.c.redeemed_at != 0)
            & (join_token.c.redeemed_key == bindparam("key"))
            & (join_token.c.redeemed_at > bindparam("earliest"))
        ),
    )
    .values(
        redeemed_at=case((join_token.c.redeemed_at == 0, bindparam("now")), else_=join_token.c.redeemed_at),
        redeemed_key=bindparam("key"),
    )
)
_STALE_TOKENS = (
    select(join_token.c.digest)
    .where(join_token.c.expires_at < bindparam("before"))
    .order_by(join_token.c.expires_at)
    .limit(PRUNE_AT_MOST)
)
_BUNDLES = select(bundle).where(bundle.c.trust_domain.in_(bindparam("names", expanding=True)))
_BUNDLE_NAMES = select(bundle.c.trust_domain).where(bundle.c.trust_domain.in_(bindparam("names", expanding=True)))
_REMOVE_BUNDLES = delete(bundle).where(bundle.c.trust_domain.in_(bindparam("names", expanding=True)))
_BUNDLE_PAGES = "bundle:"
"""How page tokens for lists of bundles begin; the name of the last trust domain follows."""
_RELATIONSHIPS = select(federation_relationship).where(
    federation_relationship.c.trust_domain.in_(bindparam("names", expanding=True))
)
_AUTHORITIES = select(authority).where(authority.c.server_id == bindparam("of")).order_by(authority.c.row_key)
_AUTHORITY = select(authority).where(authority.c.authority_id == bindparam("of"))
_OF_KIND = select(authority).where(authority.c.kind == bindparam("of")).order_by(authority.c.row_key)


class SqlJoinTokens:
    """The JoinTokenRepository of one transaction."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder

    def add(self, token: JoinToken) -> None:
        """Store; Conflict if the digest exists."""
        if self.get(token.digest) is not None:
            raise Conflict("a join token with this value exists already; choose another value")
        self._recorder.writing()
        self._connection.execute(insert(join_token), join_token_values(token))
        self._changed(token.digest)

    def get(self, digest: bytes) -> JoinToken | None:
        """The token's record, or None."""
        row = self._connection.execute(_TOKEN, {"of": digest}).one_or_none()
        return join_token_of(row) if row is not None else None

    def redeem(self, digest: bytes, key_digest: bytes, now: int, grace: int) -> bool:
        """One conditional UPDATE: the database decides who is first, whoever else tries at the same moment."""
        self._recorder.writing()
        found = self._connection.execute(
            _REDEEM, {"of": digest, "key": key_digest, "now": now, "earliest": now - grace}
        ).rowcount
        if found:
            self._changed(digest)
        return bool(found)

    def remove(self, digest: bytes) -> None:
        """Delete; an unknown digest is passed over."""
        self._recorder.writing()
        if self._connection.execute(delete(join_token).where(join_token.c.digest == digest)).rowcount:
            self._changed(digest)

    def prune(self, before: int) -> int:
        """Delete at most 1,000 tokens that expired before this unix second; how many were deleted."""
        stale = [bytes(one) for one in self._connection.execute(_STALE_TOKENS, {"before": before}).scalars()]
        if stale:
            self._recorder.writing()
        for part in chunks(stale):
            self._connection.execute(delete(join_token).where(join_token.c.digest.in_(part)))
        for digest in stale:
            self._changed(digest)
        return len(stale)

    def _changed(self, digest: bytes) -> None:
        self._recorder.changed(EventKind.JOIN_TOKEN, digest)


class SqlBundles:
    """The BundleRepository of one transaction."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder

    def get(self, trust_domain: TrustDomain) -> TrustBundle | None:
        """The bundle, or None."""
        return self.many((trust_domain.name,)).get(trust_domain)

    def many(self, names: Sequence[str]) -> dict[TrustDomain, TrustBundle]:
        """The bundles that exist among these trust domain names."""
        found = (
            bundle_of(row)
            for part in chunks(names)
            for row in self._connection.execute(_BUNDLES, {"names": [name.encode() for name in part]})
        )
        return {one.trust_domain: one for one in found}

    def put(self, new: TrustBundle) -> None:
        """Store or overwrite; an identical bundle is left alone."""
        before = self.get(new.trust_domain)
        if before == new:
            return
        values = bundle_values(new)
        self._recorder.writing()
        if before is None:
            self._connection.execute(insert(bundle), values)
        else:
            self._connection.execute(
                update(bundle)
                .where(bundle.c.trust_domain == values["trust_domain"])
                .values(document=values["document"])
            )
        self._recorder.changed(EventKind.BUNDLE, values["trust_domain"])

    def stored(self, trust_domains: Sequence[TrustDomain]) -> frozenset[TrustDomain]:
        """Those of these trust domains whose bundle there is; the bundles are not read."""
        names = [one.name.encode() for one in trust_domains]
        return frozenset(TrustDomain(name.decode()) for part in chunks(names) for name in self._present(part))

    def remove(self, trust_domains: Sequence[TrustDomain]) -> None:
        """Delete; trust domains without a bundle are passed over."""
        for part in chunks([one.name.encode() for one in trust_domains]):
            present = self._present(part)
            if present:
                self._recorder.writing()
                self._connection.execute(_REMOVE_BUNDLES, {"names": present})
            for name in present:
                self._recorder.changed(EventKind.BUNDLE, name)

    def _present(self, names: Sequence[bytes]) -> list[bytes]:
        return [bytes(name) for name in self._connection.execute(_BUNDLE_NAMES, {"names": names}).scalars()]

    def page(self, besides: TrustDomain, after: str = "", limit: int = 0) -> Page[TrustBundle]:
        """The bundles of all trust domains but `besides`, by name, beginning after the page token `after`."""
        wanted = select(bundle).where(bundle.c.trust_domain != besides.name.encode()).order_by(bundle.c.trust_domain)
        if after:
            wanted = wanted.where(bundle.c.trust_domain > _name_in(after))
        rows = self._connection.execute(wanted.limit(limit + 1) if limit > 0 else wanted).all()
        shown = rows[:limit] if limit > 0 else rows
        more = len(rows) > len(shown)
        return Page(tuple(map(bundle_of, shown)), _BUNDLE_PAGES + shown[-1].trust_domain.decode() if more else "")

    def count(self) -> int:
        """How many bundles are stored."""
        return self._connection.execute(select(func.count()).select_from(bundle)).scalar_one()

    def all(self) -> Iterator[TrustBundle]:
        """Every bundle."""
        return map(bundle_of, self._connection.execute(select(bundle)))


class SqlRelationships:
    """The RelationshipRepository of one transaction."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder

    def get(self, trust_domain: TrustDomain) -> FederationRelationship | None:
        """The relationship, or None."""
        return self.many((trust_domain.name,)).get(trust_domain)

    def many(self, names: Sequence[str]) -> dict[TrustDomain, FederationRelationship]:
        """The relationships that exist with these trust domain names."""
        found = (
            relationship_of(row)
            for part in chunks(names)
            for row in self._connection.execute(_RELATIONSHIPS, {"names": [name.encode() for name in part]})
        )
        return {one.trust_domain: one for one in found}

    def all(self) -> Iterator[FederationRelationship]:
        """Every relationship."""
        return map(relationship_of, self._connection.execute(select(federation_relationship)))

    def put(self, new: FederationRelationship) -> None:
        """Store or overwrite; an identical one is left alone."""
        before = self.get(new.trust_domain)
        if before == new:
            return
        values = relationship_values(new)
        self._recorder.writing()
        if before is None:
            row = {**values, "row_key": self._recorder.next_row_key()}
            self._connection.execute(insert(federation_relationship), row)
        else:
            named = federation_relationship.c.trust_domain == values["trust_domain"]
            self._connection.execute(update(federation_relationship).where(named).values(values))
        self._recorder.changed(EventKind.RELATIONSHIP, values["trust_domain"])

    def remove(self, trust_domain: TrustDomain) -> None:
        """Delete; an unknown trust domain is passed over."""
        name = trust_domain.name.encode()
        self._recorder.writing()
        named = federation_relationship.c.trust_domain == name
        if self._connection.execute(delete(federation_relationship).where(named)).rowcount:
            self._recorder.changed(EventKind.RELATIONSHIP, name)

    def page(self, after: str = "", limit: int = 0) -> Page[FederationRelationship]:
        """Relationships in order of creation, beginning after the page token `after`; `limit` 0 means all of them."""
        return page_of(
            self._connection,
            federation_relationship,
            (),
            after,
            limit,
            relationship_of,
            query=federation_relationship.name,
        )


class SqlAuthorities:
    """The AuthorityRepository of one transaction."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder

    def of_server(self, server_id: str) -> tuple[Authority, ...]:
        """The authorities of one server, oldest first."""
        return tuple(map(authority_of, self._connection.execute(_AUTHORITIES, {"of": server_id.encode()})))

    def get(self, authority_id: str) -> Authority | None:
        """The authority of whichever server, or None."""
        row = self._connection.execute(_AUTHORITY, {"of": authority_id.encode()}).one_or_none()
        return None if row is None else authority_of(row)

    def of_kind(self, kind: AuthorityKind) -> tuple[Authority, ...]:
        """The authorities of one kind, of every server, oldest first."""
        return tuple(map(authority_of, self._connection.execute(_OF_KIND, {"of": kind.encode()})))

    def put(self, new: Authority) -> None:
        """Store or overwrite; an identical record is left alone."""
        values = authority_values(new)
        row = self._connection.execute(_AUTHORITY, {"of": values["authority_id"]}).one_or_none()
        if row is not None and authority_of(row) == new:
            return
        self._recorder.writing()
        if row is None:
            self._connection.execute(insert(authority), {**values, "row_key": self._recorder.next_row_key()})
        else:
            self._connection.execute(update(authority).where(authority.c.row_key == row.row_key).values(values))
        self._recorder.changed(EventKind.AUTHORITY, values["authority_id"])

    def remove(self, authority_id: str) -> None:
        """Delete; an unknown id is passed over."""
        key = authority_id.encode()
        self._recorder.writing()
        if self._connection.execute(delete(authority).where(authority.c.authority_id == key)).rowcount:
            self._recorder.changed(EventKind.AUTHORITY, key)


def _name_in(token: str) -> bytes:
    """The trust domain in a page token for a list of bundles."""
    if not token.startswith(_BUNDLE_PAGES):
        raise foreign_token()
    try:
        return TrustDomain.parse(token.removeprefix(_BUNDLE_PAGES)).name.encode()
    except InvalidId:
        raise foreign_token() from None
