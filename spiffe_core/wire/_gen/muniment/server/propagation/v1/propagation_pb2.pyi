from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as _bundle_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as _entry_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FollowRequest(_message.Message):
    __slots__ = ("hello", "stamps", "ack")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STAMPS_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    stamps: Stamps
    ack: Ack
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., stamps: _Optional[_Union[Stamps, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: str
    def __init__(self, position: _Optional[str] = ...) -> None: ...

class Stamps(_message.Message):
    __slots__ = ("stamps", "more")
    STAMPS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    stamps: _containers.RepeatedCompositeFieldContainer[Stamp]
    more: bool
    def __init__(self, stamps: _Optional[_Iterable[_Union[Stamp, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class Stamp(_message.Message):
    __slots__ = ("id", "revision_number", "created_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    revision_number: int
    created_at: int
    def __init__(self, id: _Optional[str] = ..., revision_number: _Optional[int] = ..., created_at: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("position", "streams_behind")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STREAMS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    position: str
    streams_behind: int
    def __init__(self, position: _Optional[str] = ..., streams_behind: _Optional[int] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("position", "more", "compare", "entries", "removed_entries", "all_entries", "bundle", "federated_bundles", "removed_bundles", "all_bundles")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    COMPARE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    ALL_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    FEDERATED_BUNDLES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_BUNDLES_FIELD_NUMBER: _ClassVar[int]
    ALL_BUNDLES_FIELD_NUMBER: _ClassVar[int]
    position: str
    more: bool
    compare: bool
    entries: _containers.RepeatedCompositeFieldContainer[_entry_pb2.Entry]
    removed_entries: _containers.RepeatedScalarFieldContainer[str]
    all_entries: bool
    bundle: _bundle_pb2.Bundle
    federated_bundles: _containers.RepeatedCompositeFieldContainer[_bundle_pb2.Bundle]
    removed_bundles: _containers.RepeatedScalarFieldContainer[str]
    all_bundles: bool
    def __init__(self, position: _Optional[str] = ..., more: _Optional[bool] = ..., compare: _Optional[bool] = ..., entries: _Optional[_Iterable[_Union[_entry_pb2.Entry, _Mapping]]] = ..., removed_entries: _Optional[_Iterable[str]] = ..., all_entries: _Optional[bool] = ..., bundle: _Optional[_Union[_bundle_pb2.Bundle, _Mapping]] = ..., federated_bundles: _Optional[_Iterable[_Union[_bundle_pb2.Bundle, _Mapping]]] = ..., removed_bundles: _Optional[_Iterable[str]] = ..., all_bundles: _Optional[bool] = ...) -> None: ...

class AwaitAgentsRequest(_message.Message):
    __slots__ = ("revision", "timeout_ms", "agent_id")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    revision: int
    timeout_ms: int
    agent_id: str
    def __init__(self, revision: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., agent_id: _Optional[str] = ...) -> None: ...

class AwaitAgentsResponse(_message.Message):
    __slots__ = ("revision", "connected", "reached", "behind", "polling", "over", "unknown", "unknown_agents", "unknown_since", "servers", "servers_owing")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    POLLING_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_AGENTS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_SINCE_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    SERVERS_OWING_FIELD_NUMBER: _ClassVar[int]
    revision: int
    connected: int
    reached: int
    behind: _containers.RepeatedScalarFieldContainer[str]
    polling: int
    over: bool
    unknown: int
    unknown_agents: _containers.RepeatedScalarFieldContainer[str]
    unknown_since: int
    servers: int
    servers_owing: int
    def __init__(self, revision: _Optional[int] = ..., connected: _Optional[int] = ..., reached: _Optional[int] = ..., behind: _Optional[_Iterable[str]] = ..., polling: _Optional[int] = ..., over: _Optional[bool] = ..., unknown: _Optional[int] = ..., unknown_agents: _Optional[_Iterable[str]] = ..., unknown_since: _Optional[int] = ..., servers: _Optional[int] = ..., servers_owing: _Optional[int] = ...) -> None: ...

class ListProgressRequest(_message.Message):
    __slots__ = ("agent_id", "page_size", "page_token")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    page_size: int
    page_token: str
    def __init__(self, agent_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListProgressResponse(_message.Message):
    __slots__ = ("revision", "agents", "next_page_token")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    revision: int
    agents: _containers.RepeatedCompositeFieldContainer[AgentProgress]
    next_page_token: str
    def __init__(self, revision: _Optional[int] = ..., agents: _Optional[_Iterable[_Union[AgentProgress, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AgentProgress(_message.Message):
    __slots__ = ("agent_id", "revision", "connected", "polled_at", "streams_behind", "server_id", "unknown_since")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    POLLED_AT_FIELD_NUMBER: _ClassVar[int]
    STREAMS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_SINCE_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    revision: int
    connected: bool
    polled_at: int
    streams_behind: int
    server_id: str
    unknown_since: int
    def __init__(self, agent_id: _Optional[str] = ..., revision: _Optional[int] = ..., connected: _Optional[bool] = ..., polled_at: _Optional[int] = ..., streams_behind: _Optional[int] = ..., server_id: _Optional[str] = ..., unknown_since: _Optional[int] = ...) -> None: ...

class CountInForceRequest(_message.Message):
    __slots__ = ("entry_ids",)
    ENTRY_IDS_FIELD_NUMBER: _ClassVar[int]
    entry_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, entry_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CountInForceResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[EntryInForce]
    def __init__(self, entries: _Optional[_Iterable[_Union[EntryInForce, _Mapping]]] = ...) -> None: ...

class EntryInForce(_message.Message):
    __slots__ = ("entry_id", "agents", "reached", "behind", "polling", "unknown")
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    POLLING_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    entry_id: str
    agents: int
    reached: int
    behind: _containers.RepeatedScalarFieldContainer[str]
    polling: int
    unknown: int
    def __init__(self, entry_id: _Optional[str] = ..., agents: _Optional[int] = ..., reached: _Optional[int] = ..., behind: _Optional[_Iterable[str]] = ..., polling: _Optional[int] = ..., unknown: _Optional[int] = ...) -> None: ...
