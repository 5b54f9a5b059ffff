from spiffe_core.wire._gen.muniment.agent.explain.v1 import explain_pb2 as _explain_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRequest(_message.Message):
    __slots__ = ("agent_id", "selectors")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    selectors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, agent_id: _Optional[str] = ..., selectors: _Optional[_Iterable[str]] = ...) -> None: ...

class ElsewhereRequest(_message.Message):
    __slots__ = ("selectors",)
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    selectors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, selectors: _Optional[_Iterable[str]] = ...) -> None: ...

class ElsewhereResponse(_message.Message):
    __slots__ = ("entries", "parent_id")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    PARENT_ID_FIELD_NUMBER: _ClassVar[int]
    entries: int
    parent_id: str
    def __init__(self, entries: _Optional[int] = ..., parent_id: _Optional[str] = ...) -> None: ...
