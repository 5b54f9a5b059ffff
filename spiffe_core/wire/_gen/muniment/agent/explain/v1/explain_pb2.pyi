from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRequest(_message.Message):
    __slots__ = ("pid", "selectors", "refusal", "caller")
    PID_FIELD_NUMBER: _ClassVar[int]
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    pid: int
    selectors: Selectors
    refusal: str
    caller: bool
    def __init__(self, pid: _Optional[int] = ..., selectors: _Optional[_Union[Selectors, _Mapping]] = ..., refusal: _Optional[str] = ..., caller: _Optional[bool] = ...) -> None: ...

class Selectors(_message.Message):
    __slots__ = ("selectors",)
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    selectors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, selectors: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("code", "cause", "fix", "steps")
    CODE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    code: str
    cause: str
    fix: str
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    def __init__(self, code: _Optional[str] = ..., cause: _Optional[str] = ..., fix: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("name", "outcome", "text", "details")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[Step.Outcome]
        OUTCOME_OK: _ClassVar[Step.Outcome]
        OUTCOME_FAILED: _ClassVar[Step.Outcome]
        OUTCOME_SKIPPED: _ClassVar[Step.Outcome]
    OUTCOME_UNSPECIFIED: Step.Outcome
    OUTCOME_OK: Step.Outcome
    OUTCOME_FAILED: Step.Outcome
    OUTCOME_SKIPPED: Step.Outcome
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    name: str
    outcome: Step.Outcome
    text: str
    details: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., outcome: _Optional[_Union[Step.Outcome, str]] = ..., text: _Optional[str] = ..., details: _Optional[_Iterable[str]] = ...) -> None: ...
