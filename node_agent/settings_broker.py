"""[broker] in the agent's settings: who may act for other workloads, and how they are named."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from node_agent.domain.brokers import ANY, KNOWN, Broker, Permission
from node_agent.settings_addresses import LARGEST_PORT, Delegate
from spiffe_core.runtime.settings import Section, as_tuple
from spiffe_core.runtime.settings_places import Host, SocketPath


def _type_url(text: str) -> str:
    if text != ANY and text not in KNOWN:
        raise ValueError(f'must be "*" or one of {", ".join(sorted(KNOWN))}')
    return text


class ReferenceTypeSection(Section):
    """One of `allowed_reference_types`: a kind of reference a broker may use."""

    type_url: Annotated[str, AfterValidator(_type_url)]
    allow_over_tcp: bool = False


class BrokerIdSection(Section):
    """[[broker.brokers]]: one broker, and what it may do."""

    id: Delegate
    allowed_reference_types: Annotated[tuple[ReferenceTypeSection, ...], BeforeValidator(as_tuple)] = Field(
        min_length=1, max_length=16
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        kinds = [one.type_url for one in self.allowed_reference_types]
        if len(set(kinds)) < len(kinds) or (ANY in kinds and len(kinds) > 1):
            raise ValueError('allowed_reference_types: name each kind once; "*" stands alone')
        return self


class BrokerSection(Section):
    """[broker]: the SPIFFE Broker Endpoint, for proxies that act for other workloads. Off without this table."""

    socket_path: SocketPath | None = None
    bind_address: Host | None = None
    bind_port: int = Field(default=0, ge=0, le=LARGEST_PORT)
    brokers: Annotated[tuple[BrokerIdSection, ...], BeforeValidator(as_tuple)] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.socket_path is None and self.bind_address is None:
            raise ValueError("set socket_path, bind_address with bind_port, or both")
        names = [one.id for one in self.brokers]
        if len(set(names)) < len(names):
            raise ValueError("brokers: each id stands once")
        return self

    @property
    def tcp(self) -> tuple[str, int] | None:
        """Where it listens on TCP, if it does."""
        return None if self.bind_address is None else (self.bind_address, self.bind_port)

    def domain(self) -> tuple[Broker, ...]:
        """As the services know them."""
        return tuple(
            Broker(
                one.id, tuple(Permission(kind.type_url, kind.allow_over_tcp) for kind in one.allowed_reference_types)
            )
            for one in self.brokers
        )
