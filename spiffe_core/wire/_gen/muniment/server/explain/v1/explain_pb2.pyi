from spiffe_core.wire._gen.muniment.agent.explain.v1 import explain_pb2 as _explain_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LintEntriesRequest(_message.Message):
    __slots__ = ("ids", "ignored_codes")
    IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORED_CODES_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    ignored_codes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., ignored_codes: _Optional[_Iterable[str]] = ...) -> None: ...

class LintEntriesResponse(_message.Message):
    __slots__ = ("findings", "counts", "entries", "complete")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[LintFinding]
    counts: _containers.ScalarMap[str, int]
    entries: int
    complete: bool
    def __init__(self, findings: _Optional[_Iterable[_Union[LintFinding, _Mapping]]] = ..., counts: _Optional[_Mapping[str, int]] = ..., entries: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...

class LintFinding(_message.Message):
    __slots__ = ("code", "entry_id", "spiffe_id", "text", "fix")
    CODE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    code: str
    entry_id: str
    spiffe_id: str
    text: str
    fix: str
    def __init__(self, code: _Optional[str] = ..., entry_id: _Optional[str] = ..., spiffe_id: _Optional[str] = ..., text: _Optional[str] = ..., fix: _Optional[str] = ...) -> None: ...

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
