"""The half of a simulated identity server that signs tokens."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from spiffe_core.bundle import JwtAuthority, WitAuthority
from spiffe_core.crypto.jose import algorithm_of, encode_part, sign_compact
from spiffe_core.crypto.keys import spki_der
from spiffe_core.errors import NotFound
from spiffe_core.jwt_svid import JwtSvid, jwt_claims, jwt_header
from spiffe_core.wit_svid import ConfirmationKey, WitSvid, wit_claims, wit_header


class SimulatedTokens:
    """`spoil_token` replaces claims of the next token. `jwt_asked` and `wit_asked` list what was asked."""

    def init_tokens(self):
        self.jwt_ttl = 300
        self.jwt_keys, self.wit_keys = {}, {}
        self.tainted_keys, self.hidden_keys = set(), set()
        self.jwt_asked, self.wit_asked = [], []
        self.spoil_token = {}
        self.jwt_keys["jwt-1"] = ec.generate_private_key(ec.SECP256R1())
        self.wit_keys["wit-1"] = ec.generate_private_key(ec.SECP256R1())

    def new_jwt_key(self, key_id, *, hidden=False):
        """This key signs from now on; a hidden one does not stand in the bundle yet."""
        self.jwt_keys[key_id] = ec.generate_private_key(ec.SECP256R1())
        if hidden:
            self.hidden_keys.add(key_id)
        self.sequence += 1

    def taint_key(self, key_id):
        self.tainted_keys.add(key_id)
        self.sequence += 1

    def token_authorities(self):
        def shown(kind, keys):
            return tuple(
                kind(name, spki_der(key.public_key()), tainted=name in self.tainted_keys)
                for name, key in keys.items()
                if name not in self.hidden_keys
            )

        return shown(JwtAuthority, self.jwt_keys), shown(WitAuthority, self.wit_keys)

    async def new_jwt_svid(self, entry_id, audience):
        self.jwt_asked.append((entry_id, tuple(audience)))
        await self._begin("new_jwt_svid", member=True)
        entry = self.entries.get(entry_id)
        if entry is None:
            raise NotFound("entry not found or not authorized")
        now = int(self.clock.now().timestamp())
        claims = jwt_claims(
            entry.spiffe_id,
            tuple(audience),
            issued_at=now,
            expires_at=now + self.jwt_ttl,
            jti=f"{len(self.jwt_asked)}" if entry.jwt_svid_include_jti else "",
        )
        return JwtSvid(
            self._token(claims, *list(self.jwt_keys.items())[-1], jwt_header),
            entry.spiffe_id,
            tuple(audience),
            now,
            now + self.jwt_ttl,
        )

    async def issue_wits(self, requests):
        self.wit_asked.append([one.entry_id for one in requests])
        await self._begin("issue_wits", member=True)
        return [self._wit(one) for one in requests]

    def _wit(self, request):
        entry = self.entries.get(request.entry_id)
        if entry is None:
            return NotFound("entry not found or not authorized")
        now = int(self.clock.now().timestamp())
        confirmed = ConfirmationKey.read(request.public_key, request.algorithm)
        claims = wit_claims(entry.spiffe_id, confirmed, issued_at=now, expires_at=now + self.ttl)
        token = self._token(claims, *list(self.wit_keys.items())[-1], wit_header)
        return WitSvid(token, entry.spiffe_id, now, now + self.ttl)

    def _token(self, claims, key_id, key, header):
        claims = {**claims, **self.spoil_token}
        self.spoil_token = {}
        return sign_compact(encode_part(header(algorithm_of(key.public_key()), key_id)), encode_part(claims), key)
