"""Join tokens: a one-use secret that an operator carries from the server to a new node (spire_wire section 7).

The payload is the token itself; there is no challenge. The verifier only says which agent the token would make: the
token is redeemed, bound to the key of the signing request, in the transaction that records the agent (architecture
A18), so that a token is never spent on an agent that was not written down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar

from attestors.api import Attested, Challenge, Dialogue
from spiffe_core.errors import ConfigError, InvalidRequest, PreconditionFailed

MAX_TOKEN_BYTES = 256
_TOKEN = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_TOKEN_BYTES}}}")
"""A token is the last segment of its agent's SPIFFE ID, so it is made of what a segment is made of (SPIFFE-ID 2.2)."""


@dataclass(frozen=True, slots=True)
class NoSettings:
    """Join tokens have nothing to configure."""


@dataclass(frozen=True, slots=True)
class ProverPorts:
    """Where the agent finds its token: called once per attempt, so that a file may be replaced meanwhile."""

    token: Callable[[], str]


class JoinTokenProver:
    """The agent's half: present the token."""

    name: ClassVar[str] = "join_token"
    Settings = NoSettings

    def __init__(self, settings: NoSettings, ports: ProverPorts) -> None:
        self._settings = settings
        self._ports = ports

    def prove(self) -> Generator[bytes, bytes, None]:
        """Yield the token. A server that challenges a join token is not following this protocol."""
        token = self._ports.token().strip()
        if not well_formed(token):
            raise ConfigError(
                f"the join token is not one: 1 to {MAX_TOKEN_BYTES} of A-Z a-z 0-9 . _ - ; "
                "make a new one with `identity-server token generate`",
                field="join_token",
            )
        yield token.encode("ascii")
        raise PreconditionFailed("the server challenged a join token; is it a join_token server?")


class JoinTokenVerifier:
    """The server's half: name the agent that the token makes. It reads nothing, so its steps need no thread."""

    name: ClassVar[str] = "join_token"
    blocking: ClassVar[bool] = False
    redeems_token: ClassVar[bool] = True
    """The use-case redeems SHA-256(payload) in the transaction that writes the agent."""
    Settings = NoSettings

    def __init__(self, settings: NoSettings | None = None, ports: None = None) -> None:
        self._settings = settings or NoSettings()
        self._ports = ports

    def verify(self, payload: bytes, key_digest: bytes) -> Dialogue:  # noqa: ARG002  # bound at redemption (A18)
        """Say which agent this token would make, without a challenge.

        Raises:
            InvalidRequest: no token looks like this. The text is the one for an unknown token.
        """
        token = payload.decode("latin-1") if len(payload) <= MAX_TOKEN_BYTES else ""
        if not well_formed(token):
            raise InvalidRequest(
                "failed to attest: join token does not exist or has already been used", field="params.data.payload"
            )
        yield from _no_challenge()
        return Attested(agent_path=f"/spire/agent/join_token/{token}", selectors=frozenset(), may_reattest=False)


def well_formed(token: str) -> bool:
    """Whether `token` can be a join token: one SPIFFE ID path segment."""
    return _TOKEN.fullmatch(token) is not None and token not in {".", ".."}


def _no_challenge() -> Generator[Challenge, bytes, None]:
    yield from ()
