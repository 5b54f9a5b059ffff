from spiffe_core.wire._gen.spire.api.types import federationrelationship_pb2 as _federationrelationship_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListStatesRequest(_message.Message):
    __slots__ = ("trust_domain",)
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    trust_domain: str
    def __init__(self, trust_domain: _Optional[str] = ...) -> None: ...

class ListStatesResponse(_message.Message):
    __slots__ = ("states",)
    STATES_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedCompositeFieldContainer[State]
    def __init__(self, states: _Optional[_Iterable[_Union[State, _Mapping]]] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("relationship", "configured", "attempted_at", "fetched_at", "next_at", "failures", "error", "warnings", "has_bundle", "sequence", "x509_authorities", "jwt_authorities", "refresh_hint")
    RELATIONSHIP_FIELD_NUMBER: _ClassVar[int]
    CONFIGURED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTED_AT_FIELD_NUMBER: _ClassVar[int]
    FETCHED_AT_FIELD_NUMBER: _ClassVar[int]
    NEXT_AT_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    HAS_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    X509_AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    JWT_AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    REFRESH_HINT_FIELD_NUMBER: _ClassVar[int]
    relationship: _federationrelationship_pb2.FederationRelationship
    configured: bool
    attempted_at: int
    fetched_at: int
    next_at: int
    failures: int
    error: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    has_bundle: bool
    sequence: int
    x509_authorities: int
    jwt_authorities: int
    refresh_hint: int
    def __init__(self, relationship: _Optional[_Union[_federationrelationship_pb2.FederationRelationship, _Mapping]] = ..., configured: _Optional[bool] = ..., attempted_at: _Optional[int] = ..., fetched_at: _Optional[int] = ..., next_at: _Optional[int] = ..., failures: _Optional[int] = ..., error: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., has_bundle: _Optional[bool] = ..., sequence: _Optional[int] = ..., x509_authorities: _Optional[int] = ..., jwt_authorities: _Optional[int] = ..., refresh_hint: _Optional[int] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("url", "profile", "ttl")
    URL_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    url: str
    profile: str
    ttl: int
    def __init__(self, url: _Optional[str] = ..., profile: _Optional[str] = ..., ttl: _Optional[int] = ...) -> None: ...

class InviteResponse(_message.Message):
    __slots__ = ("invitation", "expires_at", "warnings")
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    invitation: str
    expires_at: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, invitation: _Optional[str] = ..., expires_at: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class PreviewRequest(_message.Message):
    __slots__ = ("invitation",)
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    invitation: str
    def __init__(self, invitation: _Optional[str] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("use", "key_id", "fingerprint")
    USE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    use: str
    key_id: str
    fingerprint: str
    def __init__(self, use: _Optional[str] = ..., key_id: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class PreviewResponse(_message.Message):
    __slots__ = ("relationship", "keys", "warnings", "expires_at", "sequence")
    RELATIONSHIP_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    relationship: _federationrelationship_pb2.FederationRelationship
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    expires_at: int
    sequence: int
    def __init__(self, relationship: _Optional[_Union[_federationrelationship_pb2.FederationRelationship, _Mapping]] = ..., keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., expires_at: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class AcceptRequest(_message.Message):
    __slots__ = ("invitation", "fingerprints", "url", "profile")
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    invitation: str
    fingerprints: _containers.RepeatedScalarFieldContainer[str]
    url: str
    profile: str
    def __init__(self, invitation: _Optional[str] = ..., fingerprints: _Optional[_Iterable[str]] = ..., url: _Optional[str] = ..., profile: _Optional[str] = ...) -> None: ...

class AcceptResponse(_message.Message):
    __slots__ = ("invitation", "no_invitation", "warnings")
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    NO_INVITATION_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    invitation: str
    no_invitation: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, invitation: _Optional[str] = ..., no_invitation: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
