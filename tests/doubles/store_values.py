"""Values for the tests of the store."""

import hashlib

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.authority import Authority, Status
from identity_server.domain.join_tokens import JoinToken
from tests.builders import OTHER_TD, TD, make_entry, selectors, sid
from tests.databases import SERVER

FULL_ENTRY = make_entry(
    id="full",
    selectors=["unix:uid:1000", "unix:path:/usr/bin/web"],
    x509_svid_ttl=60,
    jwt_svid_ttl=30,
    federates_with=(OTHER_TD, TD),
    admin=True,
    downstream=True,
    expires_at=2_000_000_000,
    dns_names=("web.example.org", "*.web.example.org"),
    revision_number=7,
    store_svid=True,
    hint="internal",
    created_at=1_700_000_000,
    jwt_svid_include_jti=True,
)
AGENT = AttestedAgent(
    spiffe_id=sid("/spire/agent/a"),
    attestation_type="join_token",
    serial="340282366920938463463374607431768211455",
    expires_at=2_000_000_000,
    selectors=selectors("join_token:abc", "os:linux"),
    can_reattest=True,
    agent_version="0.1.0",
)
AUTHORITY = Authority(
    authority_id="ab" * 20,
    server_id=SERVER,
    slot="A",
    status=Status.PREPARED,
    certificate=b"\x30\x00\xff",
    issued_at=1,
    not_after=2,
    published_at=0,
    upstream_chain=(b"\x01", b"\x00"),
    anchor_id="ab" * 32,
)


def token(name: str, **over: object) -> JoinToken:
    values: dict[str, object] = {
        "digest": hashlib.sha256(name.encode()).digest(),
        "alias_path": "/node",
        "expires_at": 1_000,
        **over,
    }
    return JoinToken(**values)  # type: ignore[arg-type]  # values are checked by the tests that use them
